"""A run or a checkpoint by fairseq's own search, routed as `fairseq-generate` does with the plugin."""

from __future__ import annotations

import argparse
import contextlib
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.data import data_utils
from torch import Tensor

from coe_core.stored_points import CASCADE, COE, has_exits
from coe_core.support.files import sha256_of
from coe_core.threads import Threads, choose_threads
from translation.corpora.vocabulary import load_pieces
from translation.evaluation.held_out import control_system
from translation.evaluation.translations import DELEGATOR_ALONE, EXPERT_ALONE
from translation.generation.generator import (
    CollaborativeGenerator,
    Sentences,
    hypothesis_confidence,
)
from translation.generation.macs import TransformerMacs, transformer_macs
from translation.generation.routers import Router, check_threshold
from translation.plugin.checkpoints import load_state
from translation.plugin.model import CoETransformerModel
from translation.plugin.selection import listen_to_selection
from translation.plugin.subwords import targets_of
from translation.prediction.budgets import Budgets
from translation.prediction.engine import Decoded, Search, Setting, TranslatorError

_LENGTH = 20  # tokens of a sentence that stands for all
_SENTENCES = 16  # of a batch that threads are measured with
_KEPT = 8  # searches whose generators are kept


class FairseqEngine:
    """Networks of fairseq's checkpoints.

    Args:
        path: checkpoint of the team, or of a plain transformer.
        data: folder with its dictionaries, as fairseq-preprocess made it.
        vocabulary: SentencePiece's model; None: lines are cut at their spaces.
        controls: checkpoints of other systems by name; several of an ensemble.
        points: file of operating points.
        decoded: translations of the validation text, for the curve.
        search: where none is asked for; None: that of the points, or fairseq's.
        device: "cpu", "cuda", or "auto".

    Raises:
        TranslatorError: a checkpoint or a folder that does not serve.
        ValueError: a damaged checkpoint, or dictionaries of another.
    """

    def __init__(
        self,
        path: Path,
        data: Path,
        vocabulary: Path | None,
        *,
        controls: Mapping[str, list[Path]] | None = None,
        points: Path | None = None,
        decoded: Path | None = None,
        search: Search | None = None,
        device: str = "auto",
    ):
        self.name = path.name
        self.samples: list[str] = []
        self.controls = dict(controls or {})
        self.device = _device(device)
        (self.model,), _, self.task = checkpoint_utils.load_model_ensemble_and_task(
            [str(path)], arg_overrides={"data": str(data)}
        )
        self._ready(self.model)
        self.team = self.model if isinstance(self.model, CoETransformerModel) else None
        self.dictionary = self.task.source_dictionary
        self.targets = targets_of(self.dictionary.symbols)
        self.confidence = getattr(self.task, "confidence", "probability")
        self.pieces = None if vocabulary is None else load_pieces(str(vocabulary))
        self.points = points
        self.path, self.data, self.vocabulary = path, data, vocabulary
        self.budgets = Budgets(points, decoded, self.used_with, self.systems)
        self.search = search or self._fitted_search()
        self._loaded: dict[str, list[Any]] = {}
        self._generators: dict[tuple[str, Search], CollaborativeGenerator] = {}
        self._spent: dict[int, float] = {}  # multiply-adds of the sentences of the batch in work
        self._lock = threading.Lock()

    @property
    def longest(self) -> int:
        return int(self.model.max_positions()[0]) - 1

    @property
    def systems(self) -> list[str]:
        names = [COE] if self.team is not None else [f"single:{Path(self.name).stem}"]
        if {DELEGATOR_ALONE, EXPERT_ALONE} <= self.controls.keys():
            names.append(CASCADE)
        return names + [control_system(name, len(paths)) for name, paths in self.controls.items()]

    @property
    def head_macs(self) -> int:
        """Multiply-adds of the selection's head."""
        return 0 if self.team is None else self.team.selection.linear.weight.numel()

    def cut(self, line: str) -> list[str]:
        if self.pieces is None:
            return line.split()
        return self.pieces.encode(line, out_type=str)

    def knows(self, piece: str) -> bool:
        return self.dictionary.index(piece) != self.dictionary.unk()

    def resolve(
        self,
        budget: str | float | None,
        threshold: float | None,
        system: str | None,
        search: Search,
    ) -> Setting:
        if self.team is None and system is None:
            system = self.systems[0]
        if threshold is not None:
            check_threshold(threshold, self.confidence)
        return self.budgets.resolve(budget, threshold, system, search)

    @torch.no_grad()
    def decode(
        self, sentences: Sequence[list[str]], setting: Setting, search: Search, nbest: int
    ) -> list[Decoded]:
        with self._lock:
            generator = self._generator(setting.system, search)
            generator.threshold = setting.threshold
            self._spent = {}
            decoded = generator.decode(self._batch(sentences))
            spent = [self._spent.get(row, 0.0) for row in range(len(sentences))]
        answers = []
        alone = setting.system not in (COE, CASCADE)
        for ranked, route, macs in zip(decoded.hypotheses, decoded.routes, spent, strict=True):
            texts = [self.text_of(hypothesis["tokens"]) for hypothesis in ranked[:nbest]]
            confidence, network = route.confidence, route.network
            if alone:
                confidence = hypothesis_confidence(ranked[0], self.confidence)
                network = setting.system.partition(":")[2]
            answers.append(Decoded(texts, network, confidence, macs))
        return answers

    def choose_threads(self, max_tokens: int) -> Threads:
        count = max(1, min(_SENTENCES, max_tokens // _LENGTH))
        words = self.dictionary.symbols[self.dictionary.nspecial :][: _LENGTH - 1]
        setting, search = Setting("no exits", self.systems[0]), self.search
        networks = [self.model] if self.team is None else self.team.experts
        macs = count * max(_per_sentence(transformer_macs(n), search.beam) for n in networks)

        def translate() -> None:
            self.decode([words] * count, setting, search, 1)

        threads = choose_threads(translate, macs, f"a batch of {count} sentences")
        torch.set_num_threads(threads.count)
        return threads

    def facts(self, system: str | None = None) -> dict:
        of_thresholds = self.systems[0] if system is None else self.budgets.find_system(system)
        macs: dict[str, Any] = {}
        if self.team is not None:
            shared = self.team.shared_macs
            spends = [transformer_macs(expert).without(shared) for expert in self.team.experts]
            spends.insert(0, transformer_macs(self.team.delegator))
            first, *rest = (_per_sentence(part, self.search.beam) for part in spends)
            macs = {"delegator": first, "experts": rest}
        curve = self.budgets.curve(of_thresholds) if has_exits(of_thresholds) else None
        return {
            "systems": self.systems,
            "macs": macs,
            "slider": of_thresholds if has_exits(of_thresholds) else None,
            "operating_points": {
                name: {**point.to_dict(), "system": system or self.budgets.deployed(name)}
                for name, point in self.budgets.named(system and of_thresholds).items()
            },
            "curve": None if curve is None else curve.to_dict(),
            "confidence": self.confidence,
        }

    def used_with(self, system: str) -> dict[str, Any]:
        """What stored points of a system must have been fitted with."""
        config = self.task.cfg
        used: dict[str, Any] = {"direction": f"{config.source_lang}-{config.target_lang}"}
        if has_exits(system):
            used |= {"confidence": self.confidence}
            used |= {"router": "learned" if system == COE else "cascade"}
        if system == CASCADE:
            files = {name: self.controls[name][0] for name in (DELEGATOR_ALONE, EXPERT_ALONE)}
            return used | {n: sha256_of(path) for n, path in files.items() if path.is_file()}
        name = system.partition(":")[2]
        paths = self.controls.get(name, [self.path])
        if all(path.is_file() for path in paths):
            used["checkpoint"] = ":".join(map(sha256_of, paths))
        return used

    def _fitted_search(self) -> Search:
        for point in self.budgets.named().values():
            beam, lenpen = point.fitted_with.get("beam"), point.fitted_with.get("lenpen")
            return Search().changed(beam, lenpen, None)
        return Search()

    def _batch(self, sentences: Sequence[list[str]]) -> Sentences:
        rows = [
            torch.tensor([*map(self.dictionary.index, pieces), self.dictionary.eos()])
            for pieces in sentences
        ]
        source = data_utils.collate_tokens(
            rows, self.dictionary.pad(), left_pad=self.task.cfg.left_pad_source
        )
        length = torch.tensor([len(row) for row in rows])
        index = torch.arange(len(rows))
        return Sentences(*(part.to(self.device) for part in (source, length, index)))

    def text_of(self, tokens: Tensor) -> str:
        """The text of a target's tokens."""
        words = self.task.target_dictionary
        special = (words.pad(), words.eos(), words.bos())
        pieces = [words[token] for token in tokens.tolist() if token not in special]
        return " ".join(pieces) if self.pieces is None else self.pieces.decode(pieces).strip()

    def _ready(self, network: Any) -> None:
        network.make_generation_fast_(beamable_mm_beam_size=None, need_attn=False)
        network.to(self.device).eval()

    def networks_of(self, name: str) -> list[Any]:
        """Networks of a control, loaded once; of no control the one of a plain checkpoint.

        Raises:
            TranslatorError: one that was not trained.
        """
        if name not in self.controls:
            return [self.model]
        if name not in self._loaded:
            networks = []
            for path in self.controls[name]:
                if not path.is_file():
                    raise TranslatorError(f"{path}: no such file; {name} was not trained")
                self._check_vocabulary(path)
                loaded, _ = checkpoint_utils.load_model_ensemble([str(path)], task=self.task)
                networks += loaded
                self._ready(loaded[0])
            self._loaded[name] = networks
        return self._loaded[name]

    def _check_vocabulary(self, path: Path) -> None:
        """Raise TranslatorError for a control that is of other pieces; fairseq's own says no dictionaries."""
        for side in ("encoder", "decoder"):
            name = f"{side}.embed_tokens.weight"
            weight = load_state(path, only_look=True)["model"].get(name)
            if weight is not None and len(weight) != len(self.dictionary):
                raise TranslatorError(
                    f"{path} is of another recipe: its {name} is {list(weight.shape)}, this vocabulary has "
                    f"{len(self.dictionary)} pieces"
                )

    def _generator(self, system: str, search: Search) -> CollaborativeGenerator:
        if (system, search) not in self._generators:
            while len(self._generators) >= _KEPT:
                self._generators.pop(next(iter(self._generators)))
            self._generators[system, search] = self._built(system, search)
        return self._generators[system, search]

    def _built(self, system: str, search: Search) -> CollaborativeGenerator:
        if system == COE:
            assert self.team is not None, "another system is resolved without one"
            first = self._over([self.team.delegator], search, self.head_macs)
            experts = [self._over([expert], search, left=True) for expert in self.team.experts]
            selection = listen_to_selection(first, self.team.select)
            return self._routed(first, selection, experts, Router("learned"))
        if system == CASCADE:
            first = self._over(self.networks_of(DELEGATOR_ALONE), search)
            experts = [self._over(self.networks_of(EXPERT_ALONE), search)]
        else:
            first = self._over(self.networks_of(system.partition(":")[2]), search)
            experts = [first]
        return self._routed(first, lambda: torch.zeros(first.count, 1), experts, Router("cascade"))

    def _routed(
        self, first: _Counted, selection: Any, experts: list[_Counted], router: Router
    ) -> CollaborativeGenerator:
        shared = None if self.team is None else self.team.shared
        return CollaborativeGenerator(
            first,
            selection,
            self._select,
            experts,
            router,
            threshold=math.inf,
            confidence=self.confidence,
            pad=self.dictionary.pad(),
            eos=self.dictionary.eos(),
            remembering=contextlib.nullcontext if shared is None else shared.remembering,
        )

    def _select(self, source: Tensor, length: Tensor) -> Tensor:
        """Selection by the delegator's encoder alone; of a whole batch, in its order."""
        assert self.team is not None, "others select nothing"
        spends = transformer_macs(self.team.delegator).encoder(length.cpu())
        self._spent = {row: macs + self.head_macs for row, macs in enumerate(spends.tolist())}
        return self.team.select_sentences(source, length)

    def _over(
        self, networks: list[Any], search: Search, extra: int = 0, left: bool = False
    ) -> _Counted:
        """A generator that counts; ``left``: what is left where shared layers have run already."""
        options = argparse.Namespace(
            beam=search.beam, lenpen=search.lenpen, max_len_b=search.max_len
        )
        build = getattr(self.task, "plain_generator", self.task.build_generator)
        spends = [transformer_macs(network) for network in networks]
        if left and self.team is not None:
            spends = [part.without(self.team.shared_macs) for part in spends]
        return _Counted(build(networks, options), spends, search.beam, extra, self)


class _Counted:
    """fairseq's generator over some networks, which adds up the multiply-adds of every sentence."""

    def __init__(
        self,
        generator: Any,
        spends: list[TransformerMacs],
        beam: int,
        extra: int,
        engine: FairseqEngine,
    ):
        self.generator, self.beam, self.extra, self.engine = generator, beam, extra, engine
        self.spends = spends
        self.symbols_to_strip_from_output = generator.symbols_to_strip_from_output
        self.count = 0  # sentences of the last call

    @property
    def model(self) -> Any:
        return self.generator.model

    def generate(self, models: Any, sample: dict, **options: Any) -> list[list[dict[str, Tensor]]]:
        """fairseq's hypotheses."""
        hypotheses = self.generator.generate(models, sample, **options)
        self.count = len(hypotheses)
        lengths = sample["net_input"]["src_lengths"].cpu()
        steps = torch.tensor([max(len(part["tokens"]) for part in best) for best in hypotheses])
        macs: Any = sum(part.sentence(lengths, steps, self.beam) for part in self.spends)
        spent = self.engine._spent
        for number, value in zip(sample["id"].tolist(), macs.tolist(), strict=True):
            spent[number] = spent.get(number, 0.0) + value + self.extra
        return hypotheses


def _per_sentence(spends: TransformerMacs, beam: int) -> int:
    """Multiply-adds of a sentence of 20 tokens and a translation of as many, for a page."""
    return int(spends.of_lengths(_LENGTH, _LENGTH, beam))


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: there is no GPU here; give cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
