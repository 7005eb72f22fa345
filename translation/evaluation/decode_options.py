"""Options of fairseq-generate for `decode`: those that it would ignore, or that cannot be, are refused."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import math
import sys
from collections.abc import Sequence
from typing import Any

from fairseq import options
from fairseq.data import data_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf

from translation.generation.generator import by_longest_source

# Section, option, its default, and why another value has no place here.
_IGNORED = (
    (
        "task",
        "threshold",
        "inf",
        "every network translates all sentences; calibrate finds thresholds",
    ),
    ("task", "router", "learned", "every network translates all sentences; curve has the controls"),
    ("task", "routes", "-", "there are no routes, as every network translates all sentences"),
    ("generation", "nbest", 1, "the best translation of each network is kept"),
    ("generation", "prefix_size", 0, "translations are not forced"),
    ("generation", "constraints", None, "translations are not forced"),
    ("generation", "score_reference", False, "it scores one network's forced decoding"),
    ("generation", "replace_unk", None, "unknown words are kept as they are"),
    ("generation", "print_alignment", None, "alignments are not kept"),
    ("generation", "print_step", False, "it belongs to non-autoregressive models"),
    ("generation", "retain_iter_history", False, "it belongs to non-autoregressive models"),
    ("generation", "lm_path", None, "a language model beside the networks is not counted"),
    ("common_eval", "results_path", None, "the translations go to --out"),
    ("dataset", "num_shards", 1, "the whole set is translated"),
    ("checkpoint", "checkpoint_suffix", "", "checkpoints are files of their own"),
    ("checkpoint", "checkpoint_shard_count", 1, "checkpoints are files of their own"),
    ("scoring", "_name", "bleu", "coe-translation score and curve score"),
)
# All that has an effect on translations; of the rest what only concerns printing is passed over.
_USED = frozenset(
    (
        *("data", "path", "post_process", "cpu", "fp16", "seed", "no_seed_provided", "user_dir"),
        *("task", "bpe", "tokenizer", "num_workers", "gen_subset", "model_overrides"),
        *("max_tokens", "batch_size", "skip_invalid_size_inputs_valid_test", "dataset_impl"),
        *(
            "beam",
            "max_len_a",
            "max_len_b",
            "min_len",
            "match_source_len",
            "unnormalized",
            "lenpen",
        ),
        *("unkpen", "no_repeat_ngram_size", "sampling", "sampling_topk", "sampling_topp"),
        *("temperature", "diverse_beam_groups", "diverse_beam_strength", "diversity_rate"),
        *("retain_dropout", "retain_dropout_modules", "required_seq_len_multiple"),
        *("source_lang", "target_lang", "left_pad_source", "left_pad_target", "confidence"),
        *("max_source_positions", "max_target_positions", "truncate_source", "num_batch_buckets"),
        *("quiet", "no_progress_bar", "log_format", "log_interval"),
    )
)
_ONLY_WITH = (  # option, its default, what it is of
    ("sampling_topk", -1, "sampling", False),
    ("sampling_topp", -1.0, "sampling", False),
    ("diverse_beam_strength", 0.5, "diverse_beam_groups", -1),
    ("retain_dropout_modules", None, "retain_dropout", False),
)
_OFF = {"sampling_topk": -1, "no_repeat_ngram_size": 0, "sampling_topp": -1.0, "temperature": 1.0}
_WIDEST = 1000  # as of every other command
_AT_LEAST_1 = (("dataset", "batch_size"), ("dataset", "max_tokens"), ("generation", "beam"))


def generation_options(words: Sequence[str]) -> Any:
    """fairseq-generate's own options as its configuration.

    Raises:
        ValueError: an option that fairseq does not know, that `decode` would ignore, or that cannot be.
    """
    parser = options.get_generation_parser(default_task="coe_translation")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            arguments = options.parse_args_and_arch(parser, input_args=list(words))
    except (ImportError, OSError) as error:  # of --user-dir
        raise ValueError(f"{' '.join(str(error).split())} (--user-dir)") from error
    except SystemExit as left:
        if not left.code:
            raise
        message = said.getvalue().strip().rpartition("\n")[2].rpartition("error: ")[2]
        raise ValueError(f"{message[:300]} (options of fairseq-generate)") from left
    sys.stderr.write(said.getvalue())
    logger = logging.getLogger("fairseq.dataclass.utils")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it writes all options out before it raises
    try:
        cfg = convert_namespace_to_omegaconf(arguments)
    except Exception as error:  # of hydra, of many kinds
        raise ValueError(f"options of fairseq-generate: {error}") from error
    finally:
        logger.setLevel(level)
    check_options(cfg)
    bare = options.parse_args_and_arch(
        options.get_generation_parser(default_task="coe_translation"), ["DATA", "--path", "PATH"]
    )
    named = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in words}
    _refuse_unused({n: v for n, v in vars(arguments).items() if n in named}, vars(bare))
    return cfg


def _refuse_unused(given: dict[str, Any], bare: dict[str, Any]) -> None:
    """Refuse what differs from a bare command line and changes no translation."""
    for name in given.keys() & bare.keys() - _USED:
        if given[name] != bare[name]:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} has no effect in decode; leave it out")
    for name, default, other, off in _ONLY_WITH:
        if given.get(name, default) != default and given.get(other, off) == off:
            option, needed = name.replace("_", "-"), other.replace("_", "-")
            raise ValueError(f"--{option} has no effect without --{needed}; leave it out")


def check_options(cfg: Any) -> None:
    """Refuse options of fairseq-generate that `decode` would ignore, or that cannot be.

    Args:
        cfg: of fairseq-generate.

    Raises:
        ValueError: there is one.
    """
    for section, name, default, reason in _IGNORED:
        value = getattr(getattr(cfg, section, None), name, default)
        if value != default:
            option = "scoring" if section == "scoring" else name.replace("_", "-")
            raise ValueError(f"--{option} {value} does not go with decode: {reason}")
    for section, name in _AT_LEAST_1:
        value = getattr(getattr(cfg, section), name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if cfg.generation.beam > _WIDEST:
        raise ValueError(f"--beam must be at most {_WIDEST}, got {cfg.generation.beam}")
    for section in ("generation", "dataset"):
        for name, value in getattr(cfg, section).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"--{name.replace('_', '-')} must be a finite number, got {value}")
    for section in ("bpe", "tokenizer"):
        part: Any = getattr(cfg, section, None)
        for missing in OmegaConf.missing_keys(part) if OmegaConf.is_config(part) else ():
            raise ValueError(
                f"--{section} {part._name} needs --{missing.rpartition('.')[2].replace('_', '-')}"
            )
    post_process = cfg.common_eval.post_process
    if post_process is not None:
        try:
            data_utils.post_process("", post_process)
        except NotImplementedError as error:
            raise ValueError(f"--remove-bpe {post_process}: {error}") from error
    overrides = cfg.common_eval.model_overrides
    for name in ("sampling_topk", "no_repeat_ngram_size", "sampling_topp", "temperature"):
        value, off = getattr(cfg.generation, name), _OFF[name]
        most = 1 if name == "sampling_topp" else math.inf
        if value != off and not 0 < value <= most:
            most_text = " and at most 1" if most == 1 else ""
            raise ValueError(f"--{name.replace('_', '-')} must be above 0{most_text}, got {value}")
    try:
        plain = isinstance(ast.literal_eval(overrides), dict)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        plain = False
    if not plain:
        raise ValueError(
            f"--model-overrides must be a dictionary of plain values, got {overrides!r:.80}"
        )
    if by_longest_source(cfg.generation) and cfg.dataset.batch_size != 1:
        raise ValueError(
            "--max-len-a and --match-source-len go by the longest source of a batch, so a translation would "
            "depend on its batch: give --batch-size 1"
        )
