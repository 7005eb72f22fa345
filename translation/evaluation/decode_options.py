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
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

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
    except ImportError as error:  # of --user-dir
        raise ValueError(f"{' '.join(str(error).split())} (--user-dir)") from error
    except SystemExit as left:
        if not left.code:
            raise
        message = said.getvalue().strip().rpartition("\n")[2].rpartition("error: ")[2]
        raise ValueError(f"{message} (options of fairseq-generate)") from left
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
    return cfg


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
    for section in ("generation", "dataset"):
        for name, value in getattr(cfg, section).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"--{name.replace('_', '-')} must be a finite number, got {value}")
    overrides = cfg.common_eval.model_overrides
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
