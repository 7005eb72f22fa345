"""Let every network of a team, and every control, translate a data set; what fairseq-generate does once."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from fairseq import checkpoint_utils, tasks, utils

from coe_core.support.files import sha256_of
from coe_core.support.provenance import processor, provenance
from translation.evaluation.decode_options import check_options
from translation.evaluation.reference import check_reference, in_pieces
from translation.evaluation.translations import (
    DELEGATOR,
    ENSEMBLE,
    OfNetwork,
    Selection,
    Translations,
)
from translation.generation.generator import hypothesis_confidence, not_empty
from translation.generation.macs import transformer_macs
from translation.generation.routers import certainty
from translation.plugin.model import CoETransformerModel


class _Translated(NamedTuple):
    """One sentence by one network."""

    text: str
    confidence: float
    macs: float
    seconds: float  # its share of its batch's


class _Searcher(NamedTuple):
    """A generator, and the networks that it runs at every step."""

    generator: Any
    networks: list[Any]
    extra_macs: int = 0  # of every sentence
    direction: str | None = None  # whose sentences alone it translates


def decode_all(
    cfg: Any,
    controls: dict[str, str],
    reference: list[str] | None = None,
    tell: Callable[[str], None] = lambda line: None,
    directions: list[str] | None = None,
) -> Translations:
    """Translate a data set once by every network.

    Args:
        cfg: of `generation_options`; ``--path`` names the team's checkpoint.
        controls: checkpoints of plain transformers, by name; several joined by colons are an ensemble, and
            those of NAME@DIRECTION are one system NAME, each on the sentences of its direction.
        reference: lines of the data set's target text as it was before it was cut into pieces;
            default: the pieces put together again.
        tell: called with a line about each network.
        directions: of every sentence of the data set, such as de-en, where there are several.

    Raises:
        ValueError: the checkpoint is not a team's, a name is taken, the reference does not match the data
            set, the set has no target and no reference is given, or options that cannot be.
    """
    check_options(cfg)
    if not cfg.generation.no_seed_provided:
        utils.set_torch_seed(cfg.common.seed)
    task = tasks.setup_task(cfg.task)
    team = _load_team(cfg, task)
    searchers = _searchers(task, team, controls, cfg)
    subset = cfg.dataset.gen_subset
    task.load_dataset(subset)
    whole = len(task.dataset(subset))
    if reference is not None and len(reference) != whole:
        raise ValueError(f"the reference has {len(reference)} lines, {subset} {whole} sentences")
    if directions is not None and len(directions) != whole:
        raise ValueError(f"{len(directions)} directions for the {whole} sentences of {subset}")
    if reference is None and task.dataset(subset).tgt is None:
        raise ValueError(f"{subset} has no target (--only-source); give its text with --reference")
    batches = _batches(task, cfg, team)
    rows = sorted(number for batch in batches for number in batch["id"].tolist())
    if not rows:
        raise ValueError(f"all {whole} sentences of {subset} are over the length limit")
    skipped = whole - len(rows)
    if skipped:
        tell(f"{skipped} of {whole} sentences are over the length limit and are skipped")
    texts = _Texts(task, cfg)
    sources, references = _texts_of(batches, rows, texts, reference, subset, tell)
    networks = {}
    translated: dict[str, dict[int, _Translated]] = {}
    for name, searcher in searchers.items():
        mine = batches
        if searcher.direction is not None:
            mine = _of_direction(batches, searcher.direction, directions or [])
        translated.setdefault(name.partition("@")[0], {}).update(
            _search(searcher, mine, task, cfg, texts)
        )
    for name, by_row in translated.items():
        if missing := [row for row in rows if row not in by_row]:
            raise ValueError(
                f"control {name} has no network for {len(missing)} of {len(rows)} sentences; give one for "
                "each direction"
            )
        of_network = OfNetwork(*map(list, zip(*(by_row[row] for row in rows), strict=True)))
        networks[name] = of_network
        tell(
            f"{name:16} {sum(of_network.macs) / len(rows) / 1e6:9.2f} MMACs  "
            f"{1000 * sum(of_network.seconds) / len(rows):7.2f} ms a sentence"
        )
    selection = _select(team, batches, task.source_dictionary)
    made_with = _provenance(cfg, task, controls, skipped, texts.on_cuda)
    of_rows = [directions[row] for row in rows] if directions else []
    return Translations(made_with, sources, references, selection, networks, of_rows)


def _of_direction(batches: list[dict], direction: str, directions: list[str]) -> list[dict]:
    """The sentences of one direction, in the batches that they are in."""
    of_direction = []
    for batch in batches:
        kept = torch.tensor([directions[row] == direction for row in batch["id"].tolist()])
        if not kept.any():
            continue
        kept = kept.to(batch["id"].device)
        inputs = {
            name: value[kept] for name, value in batch["net_input"].items() if value is not None
        }
        of_direction.append({**batch, "id": batch["id"][kept], "net_input": inputs})
    return of_direction


def _provenance(
    cfg: Any, task: Any, controls: dict[str, str], skipped: int, on_cuda: bool
) -> dict[str, Any]:
    return provenance(
        ("torch", "fairseq-fixed", "sacrebleu", "sentencepiece"),
        checkpoint=cfg.common_eval.path,
        checkpoint_sha256=sha256_of(cfg.common_eval.path),
        direction=f"{task.cfg.source_lang}-{task.cfg.target_lang}",
        controls=controls,
        controls_sha256={name: _digest(path) for name, path in controls.items()},
        data=str(cfg.task.data),
        subset=cfg.dataset.gen_subset,
        skipped=skipped,
        confidence=task.confidence,
        beam=cfg.generation.beam,
        lenpen=cfg.generation.lenpen,
        batch_size=cfg.dataset.batch_size,
        max_tokens=cfg.dataset.max_tokens,
        threads=torch.get_num_threads(),
        device="cuda" if on_cuda else processor(),
    )


def _digest(paths: str) -> str:
    """Of one checkpoint its SHA-256, of several those of all."""
    return ":".join(sha256_of(path) for path in utils.split_paths(paths))


def _texts_of(
    batches: list[dict],
    rows: list[int],
    texts: _Texts,
    reference: list[str] | None,
    subset: str,
    tell: Callable[[str], None],
) -> tuple[list[str], list[str]]:
    """Sources and references of the sentences that are translated, checked against each other."""
    source, target = texts.originals(batches)
    sources = [source[row] for row in rows]
    targets = [target[row] for row in rows] if target else []
    if reference is None:
        if in_pieces(targets):
            tell(
                f"the texts of {subset} stay cut into pieces; --remove-bpe would put them together"
            )
        return sources, targets
    references = [reference[row] for row in rows]
    if targets:
        line = check_reference(references, targets, sources, subset)
        if line is not None:
            tell(line)
    return sources, references


def _load_team(cfg: Any, task: Any) -> CoETransformerModel:
    paths = utils.split_paths(cfg.common_eval.path or "")
    if len(paths) != 1:
        raise ValueError(f"--path names {len(paths)} checkpoints; give the team's alone")
    team = _load(paths[0], cfg, task)
    if not isinstance(team, CoETransformerModel):
        raise ValueError(
            f"{paths[0]}: not a collaboration; give a checkpoint of coe_transformer..."
        )
    return team


def _load(path: str, cfg: Any, task: Any) -> Any:
    """One network, or one team, of a checkpoint.

    Raises:
        ValueError: it cannot be built of what the checkpoint holds.
    """
    overrides = ast.literal_eval(cfg.common_eval.model_overrides)
    try:
        models, _ = checkpoint_utils.load_model_ensemble([path], arg_overrides=overrides, task=task)
    except (AssertionError, AttributeError, ImportError, IndexError, KeyError) as error:
        raise ValueError(f"{path}: cannot be built: {error or type(error).__name__}") from error
    except (RuntimeError, TypeError) as error:  # sizes that do not fit
        raise ValueError(
            f"{path}: cannot be built: {' '.join(str(error).split())[:300]}"
        ) from error
    (model,) = models
    if cfg.common.fp16:
        model.half()
    if torch.cuda.is_available() and not cfg.common.cpu:
        model.cuda()
    model.prepare_for_inference_(cfg)
    model.eval()
    return model


def _searchers(
    task: Any, team: CoETransformerModel, controls: dict[str, str], cfg: Any
) -> dict[str, _Searcher]:
    """What translates: every network of the team, their ensemble, and the controls."""

    def over(networks: list, extra: int = 0) -> _Searcher:
        return _Searcher(task.plain_generator(networks, cfg.generation), networks, extra)

    selection = team.selection.linear.weight.numel()
    searchers = {DELEGATOR: over([team.delegator], selection)}
    searchers |= {f"expert-{j}": over([expert]) for j, expert in enumerate(team.experts)}
    searchers[ENSEMBLE] = over(list(team.experts))
    for name in controls:
        if name.partition("@")[0] in searchers:
            raise ValueError(f"control {name!r} is a name of the team's own networks")
    for name, paths in controls.items():
        networks = [_load(path, cfg, task) for path in utils.split_paths(paths)]
        if any(isinstance(network, CoETransformerModel) for network in networks):
            raise ValueError(f"control {name!r} ({paths}) is a collaboration, not one network")
        searchers[name] = over(networks)._replace(direction=name.partition("@")[2] or None)
    return searchers


def _batches(task: Any, cfg: Any, team: CoETransformerModel) -> list[dict]:
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        cfg.dataset.max_tokens = 12000  # as fairseq-generate
    subset = cfg.dataset.gen_subset
    batches = task.get_batch_iterator(
        dataset=task.dataset(subset),
        max_tokens=cfg.dataset.max_tokens,
        max_sentences=cfg.dataset.batch_size,
        max_positions=utils.resolve_max_positions(task.max_positions(), team.max_positions()),
        ignore_invalid_inputs=cfg.dataset.skip_invalid_size_inputs_valid_test,
        required_batch_size_multiple=1,
        seed=cfg.common.seed,
        num_workers=cfg.dataset.num_workers,
    ).next_epoch_itr(shuffle=False)
    try:
        batches = list(batches)
    except (ValueError, IndexError, OSError) as error:
        raise ValueError(
            f"{subset}: the set is damaged ({error}); run fairseq-preprocess again"
        ) from error
    _check_tokens(batches, task, subset)
    on_cuda = torch.cuda.is_available() and not cfg.common.cpu
    return [utils.move_to_cuda(batch) if on_cuda else batch for batch in batches]


def _check_tokens(batches: list[dict], task: Any, subset: str) -> None:
    """Raise ValueError for token numbers that the dictionaries do not have: the set is damaged."""
    for batch in batches:
        sides = (
            ("source", batch["net_input"]["src_tokens"], task.source_dictionary),
            ("target", batch["target"], task.target_dictionary),
        )
        for side, tokens, dictionary in sides:
            if tokens is not None and not 0 <= int(tokens.min()) <= int(tokens.max()) < len(
                dictionary
            ):
                raise ValueError(
                    f"{subset}: its {side} has token {int(tokens.max())}, and the dictionary "
                    f"{len(dictionary)} entries; run fairseq-preprocess again"
                )


class _Texts:
    """Token numbers -> text, as fairseq-generate writes its D- lines."""

    def __init__(self, task: Any, cfg: Any):
        self.task, self.post_process = task, cfg.common_eval.post_process
        self.decoders = [task.build_bpe(cfg.bpe), task.build_tokenizer(cfg.tokenizer)]
        self.on_cuda = torch.cuda.is_available() and not cfg.common.cpu

    def text(self, tokens: Any, dictionary: Any, unknown: bool = False) -> str:
        tokens = utils.strip_pad(tokens.int().cpu(), dictionary.pad())
        text = dictionary.string(tokens, self.post_process, escape_unk=unknown)
        for decoder in self.decoders:
            text = text if decoder is None else decoder.decode(text)
        return text

    def originals(self, batches: list[dict]) -> tuple[dict[int, str], dict[int, str]]:
        source, target = {}, {}
        for batch in batches:
            for place, number in enumerate(batch["id"].tolist()):
                tokens = batch["net_input"]["src_tokens"][place]
                source[number] = self.text(tokens, self.task.source_dictionary)
                if batch["target"] is not None:
                    target[number] = self.text(
                        batch["target"][place], self.task.target_dictionary, True
                    )
        return source, target


def _select(team: CoETransformerModel, batches: list[dict], dictionary: Any) -> Selection:
    """What the delegator's encoder alone says and spends, in the order of the sentences' numbers."""
    spends, head = transformer_macs(team.delegator), team.selection.linear.weight.numel()
    by_number: dict[int, tuple[list[float], float, float, float, float]] = {}
    for batch in batches:
        tokens, lengths = (batch["net_input"][name] for name in ("src_tokens", "src_lengths"))
        started = time.perf_counter()
        logits = team.select_sentences(tokens, lengths).tolist()  # waits for the device
        seconds = (time.perf_counter() - started) / len(tokens)
        runs = not_empty(tokens, dictionary.pad(), dictionary.eos()).cpu()
        macs = ((spends.encoder(lengths.cpu()) + head) * runs).tolist()
        spent = (seconds * runs).tolist()
        shared = (team.shared_macs.encoder(lengths.cpu()) * runs).tolist()
        spared = (_seconds_of_shared(team, tokens) / len(tokens) * runs).tolist()
        values = zip(logits, macs, spent, shared, spared, strict=True)
        by_number |= dict(zip(batch["id"].tolist(), values, strict=True))
    columns = list(map(list, zip(*(by_number[row] for row in sorted(by_number)), strict=True)))
    return Selection(*columns[: 3 if team.shared is None else 5])


@torch.no_grad()
def _seconds_of_shared(team: CoETransformerModel, tokens: torch.Tensor) -> float:
    """Of the layers that the delegator and the experts share, on a batch; 0 where there are none."""
    if team.shared is None:
        return 0.0
    started = time.perf_counter()
    team.shared(tokens).states.sum().item()  # waits for the device
    return time.perf_counter() - started


def _search(
    searcher: _Searcher, batches: list[dict], task: Any, cfg: Any, texts: _Texts
) -> dict[int, _Translated]:
    """Every sentence by its number. An empty source costs nothing."""
    dictionary, beam = task.target_dictionary, cfg.generation.beam
    pad, eos = task.source_dictionary.pad(), task.source_dictionary.eos()
    spends = [transformer_macs(network) for network in searcher.networks]
    certain = certainty(task.confidence)
    translated: dict[int, _Translated] = {}
    _generate(searcher, batches[0])  # the first call is slower than all others
    for batch in batches:
        started = time.perf_counter()
        hypotheses = _generate(searcher, batch)
        if texts.on_cuda:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - started) / len(hypotheses)
        sources = batch["net_input"]["src_tokens"]
        lengths = batch["net_input"]["src_lengths"].cpu()
        steps = torch.tensor([max(len(part["tokens"]) for part in best) for best in hypotheses])
        macs: Any = sum(part.sentence(lengths, steps, beam) for part in spends)
        macs = macs + searcher.extra_macs
        empty = ~not_empty(sources, pad, eos).cpu()
        for place, number in enumerate(batch["id"].tolist()):
            best = hypotheses[place][0]
            if empty[place]:
                translated[number] = _Translated("", certain, 0.0, 0.0)
                continue
            text = texts.text(best["tokens"], dictionary)
            confidence = hypothesis_confidence(best, task.confidence)
            translated[number] = _Translated(text, confidence, float(macs[place]), seconds)
    return translated


def _generate(searcher: _Searcher, batch: dict) -> list[list[dict[str, Any]]]:
    """Hypotheses of every sentence of a batch.

    Raises:
        ValueError: lengths that fairseq's search cannot have.
    """
    try:
        return searcher.generator.generate(None, batch)
    except AssertionError as error:
        raise ValueError(f"fairseq's search: {error}") from error
