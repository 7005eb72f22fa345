"""An export by CTranslate2, through its own runner."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from coe_core.stored_points import has_exits
from coe_core.support.routing_file import stored_setting
from translation.export.runner import Runner, Translation
from translation.generation.macs import TransformerMacs
from translation.prediction.engine import Decoded, Search, Setting


class ExportEngine:
    """The networks of an export.

    Args:
        folder: of the export.
        device: "cpu", "cuda" or "auto".
        threads: of each network; 0 lets CTranslate2 choose.

    Raises:
        ValueError: an export that is damaged.
    """

    def __init__(self, folder: Path, device: str = "auto", threads: int = 0):
        self.name = folder.resolve().name
        self.samples: list[str] = []
        self.runner = Runner(folder, device, threads)
        self.targets: list[str] = self.runner.routing.get("targets", [])
        stored = self.runner.routing["search"]
        self.search = Search(stored["beam"], stored["lenpen"], stored["max_length"])
        self.confidence: str = self.runner.routing["confidence"]
        self._lock = threading.Lock()
        spends = self.runner.routing.get("spends")  # older exports do not know
        self._spends: dict[str, TransformerMacs] = {}
        self._head = 0
        if spends is not None:
            networks = [spends["delegator"], *spends["experts"]]
            named = zip(self.runner.names, networks, strict=True)
            self._spends = {name: TransformerMacs(**spent) for name, spent in named}
            self._head = spends["selection"]

    @property
    def longest(self) -> int:
        return self.runner.longest

    @property
    def systems(self) -> list[str]:
        return [self.runner.system]

    def cut(self, line: str) -> list[str]:
        pieces = self.runner.pieces  # the line has its tag already
        return line.split() if pieces is None else pieces.encode(line, out_type=str)

    def knows(self, piece: str) -> bool:
        pieces = self.runner.pieces
        return pieces is None or pieces.piece_to_id(piece) != pieces.unk_id()

    def resolve(
        self,
        budget: str | float | None,
        threshold: float | None,
        system: str | None,
        search: Search,
    ) -> Setting:
        own = self.runner.system
        if system is not None and system.lower() != own.lower():
            raise ValueError(f"no system {system[:80]!r}: this export is of {own} alone")
        if budget is not None and threshold is not None:
            raise ValueError("give a budget or a threshold, not both")
        routing, points = self.runner.routing, self.runner.routing["operating_points"]
        name = None if budget is None else str(budget)
        if name is not None and name not in points and f"macs={name}" in points:
            name = f"macs={name}"
        if threshold is not None and not has_exits(own):
            raise ValueError(f"{own} always runs whole: it takes no threshold")
        limit = stored_setting(routing, name, threshold)[0]
        if threshold is not None:
            return Setting(f"threshold {threshold:g}", own, limit)
        if has_exits(own):
            self.runner._check_fitted(name, {"beam": search.beam, "lenpen": search.lenpen})
        name = routing["default"].get("name") if name is None else name
        if not has_exits(own):
            return Setting(name or own, own)
        point = points.get(name, {})
        return Setting(
            name or "no exits", own, limit, point.get("exit_rate"), point.get("num_samples", 0)
        )

    def decode(
        self, sentences: Sequence[list[str]], setting: Setting, search: Search, nbest: int
    ) -> list[Decoded]:
        with self._lock:
            answers = self.runner.decode(
                sentences,
                threshold=setting.threshold if has_exits(setting.system) else None,
                beam=search.beam,
                lenpen=search.lenpen,
                max_length=search.max_len,
                nbest=nbest,
            )
        spent = map(self._macs, sentences, answers, [search.beam] * len(answers))
        return [
            Decoded(list(answer.texts), answer.network, answer.confidence, macs)
            for answer, macs in zip(answers, spent, strict=True)
        ]

    def _macs(self, pieces: list[str], answer: Translation, beam: int) -> float:
        """By the steps of the longest hypothesis that came back, as CTranslate2 tells of no others."""
        if not self._spends:
            return float("nan")
        length, total = len(pieces) + 1, 0.0
        for network, steps in answer.ran:
            spends = self._spends[network]
            if steps:
                total += spends.of_lengths(length, steps, beam)
            if network != "delegator" or not self.runner.selects:
                continue
            total += self._head
            if steps == 0 or answer.network != "delegator":
                # For the selection; where it translates too, CTranslate2 encodes once more.
                total += spends.of_lengths(length, 0, beam=0)
        return total

    def choose_threads(self, max_tokens: int) -> None:
        return None  # CTranslate2 has threads of its own

    def facts(self, system: str | None = None) -> dict:
        points = self.runner.routing["operating_points"]
        costs = [int(s.of_lengths(20, 20, self.search.beam)) for s in self._spends.values()]
        own = self.runner.system
        return {
            "systems": self.systems,
            "macs": {"delegator": costs[0], "experts": costs[1:]} if costs else {},
            "slider": own if has_exits(own) else None,
            "operating_points": {n: {**point, "system": own} for n, point in points.items()},
            "curve": None,
            "confidence": self.confidence,
        }
