"""The command lines that a run consists of: what a fairseq user would type."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import translation
from translation.corpora.lines import read_lines
from translation.recipe import TEAM
from translation.recipe_sections import Transformer
from translation.recipe_texts import Direction
from translation.run import Run

USER_DIR = str(Path(translation.__file__).parent)
_PLUGIN = ("--user-dir", USER_DIR, "--task", "coe_translation")
_NEVER = 10**9  # epochs: states are saved and validated by updates alone
_LOG_LINES = 50  # of a training, at least


def shown(words: Sequence[str]) -> str:
    """A command line as a user types it."""
    return shlex.join(words).replace(shlex.quote(USER_DIR), "$(coe-translation user-dir)")


def vocabulary(run: Run) -> list[str]:
    """`coe-translation vocabulary` on the training text of all languages."""
    wanted = run.recipe.vocabulary
    sides = run.recipe.languages.sides
    texts = [str(run.text(run.recipe.texts.train, side)) for side in sides]
    words = ["coe-translation", "vocabulary", *texts, "--out", str(run.vocabulary)]
    words += ["--size", str(wanted.size), "--kind", wanted.kind]
    words += ["--normalization", wanted.normalization]
    words += ["--character-coverage", str(wanted.character_coverage)]
    words += ["--byte-fallback"] if wanted.byte_fallback else []
    if run.recipe.languages.tagged:
        for language in run.recipe.languages.target:
            words += ["--user-symbol", tag(language)]
    if run.recipe.training.subword_sampling is not None:
        words += ["--dictionary", str(run.dictionary)]
    return words


def tag(language: str) -> str:
    """What says before a source sentence into which language it is wanted.

    Example:
        >>> tag("de")
        '<2de>'
    """
    return f"<2{language}>"


def encode(run: Run) -> list[str]:
    """`coe-translation encode` of all texts."""
    names, sides = run.recipe.texts.names, run.recipe.languages.sides
    texts = [str(run.text(name, side)) for name in names for side in sides]
    out = ["--model", str(run.vocabulary), "--out", str(run.pieces)]
    return ["coe-translation", "encode", *texts, *out]


def preprocess(run: Run, direction: Direction | None = None) -> list[str]:
    """fairseq-preprocess of all texts in pieces; of one direction with the dictionary of all."""
    texts, (source, target) = run.recipe.texts, run.recipe.languages.sides
    pieces = run.pieces if direction is None else run.pieces / str(direction)
    words = ["fairseq-preprocess", "--source-lang", source, "--target-lang", target]
    words += ["--joined-dictionary", "--trainpref", str(pieces / texts.train)]
    words += ["--validpref", str(pieces / texts.valid)]
    if direction is None and run.recipe.training.subword_sampling is not None:
        words += ["--srcdict", str(run.dictionary)]
    if direction is None:
        words += ["--testpref", ",".join(str(pieces / name) for name in texts.tests)]
    else:
        words += ["--srcdict", str(run.data() / f"dict.{source}.txt")]
    return [*words, "--destdir", str(run.data(direction))]


def train_team(run: Run) -> list[str]:
    """fairseq-train of the team."""
    recipe = run.recipe
    first, objective = recipe.experts[0], recipe.objective
    words = ["--arch", "coe_transformer", "--num-experts", str(recipe.num_experts), *_sizes(first)]
    for name, value in _named(recipe.delegator).items():
        words += [f"--delegator-{name}", str(value)]
    if not recipe.equal_experts:
        for side in ("encoder", "decoder"):
            layers = [str(getattr(e, f"{side}_layers")) for e in recipe.expert_networks]
            words += [f"--expert-{side}-layers", ",".join(layers)]
    words += ["--criterion", "coe_label_smoothed_cross_entropy", "--focus", str(objective.focus)]
    if objective.shared_start is not None:
        words += ["--shared-start", str(objective.shared_start)]
    words += ["--focus-warmup", str(objective.focus_warmup), "--portion-scope", objective.scope]
    words += ["--portion-queue-size", str(objective.queue_size)]
    words += ["--portion-scores", objective.scores, "--selection-labels", objective.labels]
    words += ["--label-temperature", str(objective.temperature)]
    words += ["--selection-weight", str(objective.selection_weight)]
    words += [] if objective.variance_weighting else ["--no-choice-variance"]
    if objective.groups is not None:
        words += ["--portion-groups", str(run.text(recipe.texts.train, "groups"))]
        words += ["--portion-groups-until", str(objective.groups_until)]
    if recipe.hand_over.encoder_layers:
        words += ["--shared-encoder-layers", str(recipe.hand_over.encoder_layers)]
    if recipe.hand_over.trunk_gradient is not None:
        words += ["--shared-encoder-gradient", str(recipe.hand_over.trunk_gradient)]
    words += ["--shared-decoder"] if recipe.hand_over.decoder else []
    words += ["--agreement", objective.agreement]
    if recipe.training.init is not None:
        words += ["--init-experts", str(Path(recipe.training.init).expanduser())]
    words += ["--agreement-weight", str(objective.agreement_weight)]
    return [*_train(run, TEAM, run.data(), recipe.seed), *words]


def train_plain(run: Run, system: str, network: Transformer) -> list[str]:
    """fairseq-train of a control or of a member of an ensemble, on the team's batches.

    The task is the plugin's: unlike fairseq's own it trains on whole epochs and resumes exactly. The batches
    of a network of one direction are as large as that direction's part of the team's.
    """
    name, _, part = system.partition(".")
    seed, data, share = run.recipe.seed, run.data(), 1.0
    if name in run.recipe.ensembles:
        seed += int(part)
    elif part:
        of_line = read_lines(run.directions(run.recipe.texts.train))
        data, share = run.data(Direction(*part.split("-"))), of_line.count(part) / len(of_line)
    words = ["--arch", "transformer", "--criterion", "label_smoothed_cross_entropy"]
    return [*_train(run, system, data, seed, share), *words, *_sizes(network)]


def _train(run: Run, system: str, data: Path, seed: int, share: float = 1.0) -> list[str]:
    training, (source, target) = run.recipe.training, run.recipe.languages.sides
    words = ["fairseq-train", str(data), *_PLUGIN, "--source-lang", source, "--target-lang", target]
    words += ["--share-all-embeddings", "--seed", str(seed), *_optimisation(run, share)]
    words += ["--cpu"] if training.device == "cpu" else []
    words += ["--fp16"] if training.fp16 else []
    words += ["--num-workers", str(training.workers)]
    every = str(training.interval)
    words += ["--save-dir", str(run.training(system)), "--no-epoch-checkpoints"]
    words += ["--save-interval", str(_NEVER), "--save-interval-updates", every]
    words += ["--keep-interval-updates", str(training.average)]
    if training.validate == "none":
        words += ["--disable-validation"]
    else:
        words += ["--validate-interval", str(_NEVER), "--validate-interval-updates", every]
    if training.subword_sampling is not None:
        words += ["--subword-sampling", str(training.subword_sampling)]
        words += ["--subword-model", str(run.vocabulary), "--subword-sides", training.subword_sides]
    if training.patience is not None:
        words += ["--patience", str(training.patience)]
    if training.validate == "bleu":
        words += ["--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"]
        words += ["--eval-bleu", "--eval-bleu-remove-bpe", "sentencepiece"]
        words += ["--eval-bleu-detok", "space", "--eval-bleu-args"]
        words += [json.dumps({"beam": 1, "max_len_b": run.recipe.generation.max_len})]
    log_every = str(max(1, training.updates // _LOG_LINES))
    return [*words, "--no-progress-bar", "--log-format", "json", "--log-interval", log_every]


def _optimisation(run: Run, share: float) -> list[str]:
    training = run.recipe.training
    max_tokens = max(1, round(training.max_tokens * share))
    words = ["--max-update", str(training.updates), "--max-tokens", str(max_tokens)]
    words += ["--update-freq", str(training.update_freq), "--optimizer", "adam"]
    betas = ",".join(map(str, training.adam_betas))
    words += ["--adam-betas", f"({betas})", "--lr", str(training.lr)]
    words += ["--weight-decay", str(training.weight_decay), "--clip-norm", str(training.clip_norm)]
    words += ["--lr-scheduler", training.lr_scheduler]
    words += ["--warmup-updates", str(training.warmup_updates)]
    if training.lr_scheduler == "polynomial_decay":
        words += ["--total-num-update", str(training.updates)]
    elif training.warmup_init_lr is not None:
        words += ["--warmup-init-lr", str(training.warmup_init_lr)]
    words += ["--label-smoothing", str(training.label_smoothing)]
    words += ["--dropout", str(training.dropout)]
    if training.normalize_before:
        words += ["--encoder-normalize-before", "--decoder-normalize-before"]
    words += ["--max-source-positions", str(training.max_positions)]
    words += ["--max-target-positions", str(training.max_positions)]
    words += ["--required-batch-size-multiple", str(training.batch_multiple)]
    return [*words, *(["--skip-invalid-size-inputs-valid-test"] if training.skip_long else [])]


def _named(network: Transformer) -> dict[str, int]:
    names = ("embed_dim", "ffn_embed_dim", "encoder_layers", "decoder_layers", "attention_heads")
    return {name.replace("_", "-"): getattr(network, name) for name in names}


def _sizes(network: Transformer) -> list[str]:
    words = []
    for name, value in _named(network).items():
        sides = ("",) if name.endswith("layers") else ("encoder-", "decoder-")
        for side in sides:
            words += [f"--{side}{name}", str(value)]
    return words


def average(run: Run, system: str) -> list[str]:
    """`coe-translation average` of the last states of a training, or of the one that is chosen."""
    folder = run.training(system)
    saved = sorted(folder.glob("checkpoint_*_*.pt"), key=updates_of)
    last = folder / "checkpoint_last.pt"
    states = [*map(str, saved[-run.recipe.training.average :]), str(last)]
    if run.recipe.training.select == "best":
        states = [str(folder / "checkpoint_best.pt")]
    elif run.recipe.training.select == "last" or run.recipe.training.average == 1:
        states = [str(last)]
    return ["coe-translation", "average", "--out", str(run.network(system)), *states]


def updates_of(path: Path) -> int:
    """Updates in the name of a saved state, checkpoint_EPOCH_UPDATES.pt."""
    return int(path.stem.rpartition("_")[2])


def decode(run: Run, name: str) -> list[str]:
    """`coe-translation decode` of a text by every network."""
    target = run.recipe.languages.sides[1]
    words = ["coe-translation", "decode", str(run.data()), "--path", str(run.team)]
    for control, paths in run.controls.items():
        words += ["--control", f"{control}={':'.join(map(str, paths))}"]
    for control, of_direction in run.controls_by_direction.items():
        for direction, path in of_direction.items():
            words += ["--control", f"{control}@{direction}={path}"]
    if run.recipe.several_directions:
        words += ["--directions", str(run.directions(name))]
    words += ["--gen-subset", run.subset(name), "--reference", str(run.text(name, target))]
    words += ["--out", str(run.decoded(name)), "--user-dir", USER_DIR]
    return [*words, *_generation(run)]


def _generation(run: Run) -> list[str]:
    wanted, training = run.recipe.generation, run.recipe.training
    words = ["--remove-bpe", "sentencepiece", "--num-workers", "0", "--beam", str(wanted.beam)]
    words += ["--lenpen", str(wanted.lenpen), "--max-len-b", str(wanted.max_len)]
    words += ["--batch-size", str(wanted.batch_size)]
    words += ["--skip-invalid-size-inputs-valid-test"] if training.skip_long else []
    return [*words, *(["--cpu"] if training.device == "cpu" else [])]


def calibrate(run: Run) -> list[str]:
    """`coe-translation calibrate` on the validation text."""
    translations = str(run.decoded(run.recipe.texts.valid))
    out = ["--out", str(run.points)]
    return ["coe-translation", "calibrate", translations, *run.recipe.aims, *out]


def curve(run: Run, name: str) -> list[str]:
    """`coe-translation curve` of a test."""
    words = ["coe-translation", "curve", str(run.decoded(name)), "--points", str(run.points)]
    return [*words, "--out", str(run.evaluation(name))]


def generate(run: Run, name: str, aim: str) -> list[str]:
    """fairseq-generate of a test at a stored threshold."""
    words = ["fairseq-generate", str(run.data()), *_PLUGIN, "--path", str(run.team)]
    words += ["--threshold", f"{run.points}:{aim}", "--gen-subset", run.subset(name)]
    return [*words, *_generation(run)]
