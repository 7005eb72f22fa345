"""What fairseq-train logs: progress on one line for all trainings, metrics.csv, a picture."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from coe_core.support.files import write_text
from coe_core.support.progress import ProgressLine
from coe_core.support.reports import csv_text, figure_to

_LINE = re.compile(r"\| (train_inner|train|valid) \| (\{.*\})\s*$")
_LOAD = re.compile(r"load_(\d+)")
_COLUMNS = (
    *("system", "set", "updates", "loss", "nll_loss", "rough_nll", "expert_nll", "oracle_nll"),
    *("selection_accuracy", "bleu", "lr"),
)


class Logged(NamedTuple):
    """One line of figures."""

    part: str  # train or valid
    updates: int
    figures: dict[str, float]


def parse(line: str) -> Logged | None:
    """Figures of a line of fairseq's log in JSON; None where it has none.

    Example:
        >>> parse('2026 | INFO | valid | {"epoch": 1, "valid_loss": "3.5", "valid_num_updates": "70"}')
        Logged(part='valid', updates=70, figures={'loss': 3.5})
    """
    match = _LINE.search(line)
    if match is None or match[1] == "train":  # means over epochs
        return None
    try:
        values = json.loads(match[2])
    except ValueError:
        return None
    figures = {}
    for name, value in values.items():
        try:
            figures[name.removeprefix("valid_")] = float(value)
        except (TypeError, ValueError):
            continue
    updates = figures.pop("num_updates", None)
    if updates is None:
        return None
    part = match[1].removesuffix("_inner")
    for name in ("epoch", "update"):
        figures.pop(name, None)
    return Logged(part, int(updates), figures)


def loads(figures: Mapping[str, float]) -> list[float]:
    """Parts of the sentences that each expert gets, in percent."""
    parts = {int(match[1]): value for n, value in figures.items() if (match := _LOAD.fullmatch(n))}
    return [parts[j] for j in sorted(parts)]


class Trainings:
    """Progress of trainings that may run side by side: one line for all that are left."""

    def __init__(self, line: ProgressLine, updates: Mapping[str, int]):
        """
        Args:
            line: that is drawn.
            updates: system -> updates that it has already.
        """
        self._line, self._updates = line, dict(updates)
        self._last: dict[str, dict[str, Logged]] = {}

    def told(self, system: str, line: str) -> None:
        """A line of a training's log."""
        logged = parse(line)
        if logged is None:
            return
        self._last.setdefault(system, {})[logged.part] = logged
        more = logged.updates - self._updates.get(system, 0)
        self._updates[system] = max(logged.updates, self._updates.get(system, 0))
        self._line.advance(max(more, 0), "; ".join(map(self.of, self._last)))

    def ended(self, system: str) -> None:
        """A training is done and no longer shown."""
        self._last.pop(system, None)

    def of(self, system: str) -> str:
        """Where one training stands."""
        parts = self._last.get(system, {})
        words = [f"{system} {self._updates.get(system, 0)}"]
        if "train" in parts:
            words.append(f"loss {parts['train'].figures.get('loss', 0):.2f}")
        if "valid" in parts:
            words.append(f"validation loss {parts['valid'].figures.get('loss', 0):.2f}")
            if "bleu" in parts["valid"].figures:
                words.append(f"BLEU {parts['valid'].figures['bleu']:.1f}")
        shares = loads(parts["train"].figures) if "train" in parts else []
        if shares:
            words.append(f"load {'/'.join(f'{share:.0f}' for share in shares)} %")
        return ", ".join(words)


def history(log: Path) -> list[Logged]:
    """Figures of a training by their updates; of what was done twice, after a stop, the last."""
    figures: dict[tuple[str, int], Logged] = {}
    with log.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            logged = parse(line)
            if logged is not None:
                figures[logged.part, logged.updates] = logged
    return [figures[key] for key in sorted(figures, key=lambda key: (key[1], key[0]))]


def write_metrics(path: Path, histories: Mapping[str, Sequence[Logged]]) -> None:
    """CSV of all figures of all trainings."""
    experts = max(
        (len(loads(row.figures)) for rows in histories.values() for row in rows), default=0
    )
    load_names = [f"load_{j}" for j in range(experts)]

    def cells() -> Iterator[list[Any]]:
        for system, rows in histories.items():
            for row in rows:
                figures = [row.figures.get(name) for name in (*_COLUMNS[3:], *load_names)]
                yield [system, row.part, row.updates, *figures]

    write_text(path, csv_text([*_COLUMNS, *load_names], list(cells())))


def draw(path: Path, histories: Mapping[str, Sequence[Logged]], team: str) -> None:
    """Validation loss (training loss where none was measured) of every system; load of the experts."""
    with figure_to(path, (9.0, 3.6)) as figure:
        left, right = figure.subplots(1, 2)
        for system, rows in histories.items():
            part = "valid" if any(row.part == "valid" for row in rows) else "train"
            points = [(r.updates, r.figures["nll_loss"]) for r in rows if r.part == part]
            left.plot(
                *zip(*points, strict=True), label=system, marker="." if part == "valid" else ""
            )
            what = "validation" if part == "valid" else "training"
            left.set_ylabel(f"{what} loss, bits a token")
        left.set_xlabel("updates")
        left.legend()
        rows = [row for row in histories.get(team, ()) if row.part == "train"]
        for j, shares in enumerate(zip(*(loads(row.figures) for row in rows), strict=True)):
            right.plot([row.updates for row in rows], shares, label=f"expert {j}")
        right.set_xlabel("updates")
        right.set_ylabel("load, % of the sentences")
        right.set_ylim(bottom=0)
        if rows:
            right.legend()
