"""Let every network of a team, and every control, translate a data set; what fairseq-generate does once."""

from __future__ import annotations

import ast
import platform
import time
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any, NamedTuple

import torch
from fairseq import checkpoint_utils, options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from coe_core.support.files import sha256_of
from translation.evaluation.translations import (
    DELEGATOR,
    ENSEMBLE,
    OfNetwork,
    Selection,
    Translations,
)
from translation.generation.generator import by_longest_source, hypothesis_confidence, not_empty
from translation.generation.macs import transformer_macs
from translation.generation.routers import certainty
from translation.plugin.model import CoETransformerModel


class _Searcher(NamedTuple):
    """A generator, and the networks that it runs at every step."""

    generator: Any
    networks: list[Any]
    extra_macs: int = 0  # of every sentence


def generation_options(words: Sequence[str]) -> Any:
    """fairseq-generate's own options as its configuration; they are checked by fairseq."""
    parser = options.get_generation_parser(default_task="coe_translation")
    return convert_namespace_to_omegaconf(
        options.parse_args_and_arch(parser, input_args=list(words))
    )


def decode_all(
    cfg: Any,
    controls: dict[str, str],
    reference: list[str] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Translations:
    """Translate a data set once by every network.

    Args:
        cfg: of `generation_options`; ``--path`` names the team's checkpoint.
        controls: checkpoints of plain transformers, by name.
        reference: lines of the data set's target text as it was before it was cut into pieces;
            default: the pieces put together again.
        tell: called with a line about each network.

    Raises:
        ValueError: the checkpoint is not a team's, a name is taken, the reference has another number
            of lines than the data set, or lengths that go by the batch.
    """
    if by_longest_source(cfg.generation) and cfg.dataset.batch_size != 1:
        raise ValueError(
            "--max-len-a and --match-source-len go by the longest source of a batch, so a translation would "
            "depend on its batch: give --batch-size 1"
        )
    task = tasks.setup_task(cfg.task)
    paths = utils.split_paths(cfg.common_eval.path or "")
    if len(paths) != 1:
        raise ValueError(f"--path names {len(paths)} checkpoints; give the team's alone")
    team, saved = _load(paths[0], cfg, task)
    if not isinstance(team, CoETransformerModel):
        raise ValueError(
            f"{paths[0]}: not a collaboration; give a checkpoint of coe_transformer..."
        )
    subset = cfg.dataset.gen_subset
    task.load_dataset(subset, task_cfg=saved.task)
    searchers = _searchers(task, team, cfg)
    for name, path in controls.items():
        if name in searchers:
            raise ValueError(f"control {name!r} is a name of the team's own networks")
        network, _ = _load(path, cfg, task)
        if isinstance(network, CoETransformerModel):
            raise ValueError(f"control {name!r} ({path}) is a collaboration, not one network")
        searchers[name] = _Searcher(task.plain_generator([network], cfg.generation), [network])
    batches = _batches(task, cfg, team)
    texts = _Texts(task, cfg)
    rows = sorted(number for batch in batches for number in batch["id"].tolist())
    whole = len(task.dataset(subset))
    if reference is not None and len(reference) != whole:
        raise ValueError(f"the reference has {len(reference)} lines, {subset} {whole} sentences")
    source, target = texts.originals(batches)
    skipped = whole - len(rows)
    if skipped:
        tell(f"{skipped} of {whole} sentences are over the length limit and are skipped")

    made = {}
    for name, searcher in searchers.items():
        by_row = _search(searcher, batches, task, cfg, texts)
        made[name] = OfNetwork(*map(list, zip(*(by_row[row] for row in rows), strict=True)))
        spent = made[name]
        tell(
            f"{name:16} {sum(spent.macs) / len(rows) / 1e6:9.2f} MMACs  "
            f"{1000 * sum(spent.seconds) / len(rows):7.2f} ms a sentence"
        )
    selection = _select(team, batches, task.source_dictionary)
    provenance = {
        "checkpoint": paths[0],
        "checkpoint_sha256": sha256_of(paths[0]),
        "direction": f"{task.cfg.source_lang}-{task.cfg.target_lang}",
        "controls": controls,
        "controls_sha256": {name: sha256_of(path) for name, path in controls.items()},
        "data": str(cfg.task.data),
        "subset": subset,
        "skipped": skipped,
        "confidence": task.confidence,
        "beam": cfg.generation.beam,
        "lenpen": cfg.generation.lenpen,
        "batch_size": cfg.dataset.batch_size,
        "max_tokens": cfg.dataset.max_tokens,
        "threads": torch.get_num_threads(),
        "device": "cuda" if texts.on_cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    if reference is None:
        wanted = [target[row] for row in rows]
    else:
        wanted = [reference[row] for row in rows]
    return Translations(provenance, [source[row] for row in rows], wanted, selection, made)


def _load(path: str, cfg: Any, task: Any) -> tuple[Any, Any]:
    models, saved = checkpoint_utils.load_model_ensemble(
        [path], arg_overrides=ast.literal_eval(cfg.common_eval.model_overrides), task=task
    )
    (model,) = models
    if cfg.common.fp16:
        model.half()
    if torch.cuda.is_available() and not cfg.common.cpu:
        model.cuda()
    model.prepare_for_inference_(cfg)
    model.eval()
    return model, saved


def _searchers(task: Any, team: CoETransformerModel, cfg: Any) -> dict[str, _Searcher]:
    def over(networks: list, extra: int = 0) -> _Searcher:
        return _Searcher(task.plain_generator(networks, cfg.generation), networks, extra)

    selection = team.selection.linear.weight.numel()
    found = {DELEGATOR: over([team.delegator], selection)}
    found |= {f"expert-{j}": over([expert]) for j, expert in enumerate(team.experts)}
    return found | {ENSEMBLE: over(list(team.experts))}


def _batches(task: Any, cfg: Any, team: CoETransformerModel) -> list[dict]:
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        cfg.dataset.max_tokens = 12000  # as fairseq-generate
    batches = task.get_batch_iterator(
        dataset=task.dataset(cfg.dataset.gen_subset),
        max_tokens=cfg.dataset.max_tokens,
        max_sentences=cfg.dataset.batch_size,
        max_positions=utils.resolve_max_positions(task.max_positions(), team.max_positions()),
        ignore_invalid_inputs=cfg.dataset.skip_invalid_size_inputs_valid_test,
        required_batch_size_multiple=1,
        seed=cfg.common.seed,
        num_workers=cfg.dataset.num_workers,
    ).next_epoch_itr(shuffle=False)
    on_cuda = torch.cuda.is_available() and not cfg.common.cpu
    return [utils.move_to_cuda(batch) if on_cuda else batch for batch in batches]


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
                target[number] = self.text(
                    batch["target"][place], self.task.target_dictionary, True
                )
        return source, target


def _select(team: CoETransformerModel, batches: list[dict], dictionary: Any) -> Selection:
    """What the delegator's encoder alone says and spends, in the order of the sentences' numbers."""
    spends, head = transformer_macs(team.delegator), team.selection.linear.weight.numel()
    made: dict[int, tuple[list[float], float, float]] = {}
    for batch in batches:
        tokens, lengths = (batch["net_input"][name] for name in ("src_tokens", "src_lengths"))
        started = time.perf_counter()
        logits = team.select_sentences(tokens, lengths).tolist()  # waits for the device
        seconds = (time.perf_counter() - started) / len(tokens)
        runs = not_empty(tokens, dictionary.pad(), dictionary.eos()).cpu()
        macs = ((spends.encoder(lengths.cpu()) + head) * runs).tolist()
        spent = (seconds * runs).tolist()
        made |= dict(zip(batch["id"].tolist(), zip(logits, macs, spent, strict=True), strict=True))
    return Selection(*map(list, zip(*(made[row] for row in sorted(made)), strict=True)))


def _search(
    searcher: _Searcher, batches: list[dict], task: Any, cfg: Any, texts: _Texts
) -> dict[int, tuple[str, float, float, float]]:
    """Text, confidence, MACs and seconds by the sentence's number. An empty source costs nothing."""
    dictionary, beam = task.target_dictionary, cfg.generation.beam
    pad, eos = task.source_dictionary.pad(), task.source_dictionary.eos()
    spends = [transformer_macs(network) for network in searcher.networks]
    sure = certainty(task.confidence)
    made: dict[int, tuple[str, float, float, float]] = {}
    searcher.generator.generate(None, batches[0])  # the first call is slower than all others
    for batch in batches:
        started = time.perf_counter()
        found = searcher.generator.generate(None, batch)
        if texts.on_cuda:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - started) / len(found)
        sources = batch["net_input"]["src_tokens"]
        lengths = batch["net_input"]["src_lengths"].cpu()
        steps = torch.tensor([max(len(one["tokens"]) for one in best) for best in found])
        macs = sum(one.sentence(lengths, steps, beam) for one in spends) + searcher.extra_macs
        empty = ~not_empty(sources, pad, eos).cpu()
        for place, number in enumerate(batch["id"].tolist()):
            best = found[place][0]
            if empty[place]:
                made[number] = ("", sure, 0.0, 0.0)
                continue
            text = texts.text(best["tokens"], dictionary)
            confidence = hypothesis_confidence(best, task.confidence)
            made[number] = (text, confidence, float(macs[place]), seconds)
    return made
