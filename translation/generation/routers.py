"""Who translates the sentences that do not end early: the learned selection and its controls."""

from __future__ import annotations

import math
import re
import zlib
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from coe_core import select_expert

ROUTERS = "learned, random, always-J (J an expert's number), oracle, ensemble, cascade"
CONFIDENCES = ("probability", "log_probability")


class Router(NamedTuple):
    """A rule that names an expert for each sentence, or "ensemble" and "cascade", which need none."""

    kind: str  # learned, random, always, oracle, ensemble, cascade
    expert: int = 0  # of "always"

    def select(
        self,
        selection_logits: Float[Tensor, "n k"],
        source: Int[Tensor, "n t"],
        pad: int,
        evidence: Float[Tensor, "n k"] | None = None,
    ) -> Int[Tensor, " n"]:
        """Expert of every sentence (method section 4: plain argmax of the selection, no balancing).

        "random" depends on the words of the sentence alone, so that a sentence keeps its expert in
        any batch. "oracle" takes the expert with the most evidence, so it needs the reference.

        Args:
            selection_logits: of the delegator.
            source: token numbers, padded with ``pad`` on either side.
            pad: index of the padding.
            evidence: mean log-likelihood of the reference by every expert, for "oracle".
        """
        num_experts = selection_logits.shape[1]
        if self.kind == "oracle":
            if evidence is None:
                raise ValueError(
                    "router 'oracle' looks at the reference: it serves validation "
                    "(fairseq-validate), not generation"
                )
            return evidence.argmax(1)
        if self.kind == "always":
            return torch.full_like(selection_logits[:, 0], self.expert, dtype=torch.long)
        if self.kind == "random":
            words = [row[row != pad] for row in source.cpu()]
            drawn = [zlib.crc32(row.numpy().tobytes()) % num_experts for row in words]
            return torch.tensor(drawn, dtype=torch.long, device=selection_logits.device)
        return select_expert(selection_logits)


def parse_router(name: str, num_experts: int | None) -> Router:
    """The router of that name.

    Args:
        name: as `ROUTERS` lists them.
        num_experts: None: not known yet, so any number is taken.

    Raises:
        ValueError: unknown name, or an expert that does not exist.

    Example:
        >>> parse_router("always-2", num_experts=3)
        Router(kind='always', expert=2)
    """
    if name in ("learned", "random", "oracle", "ensemble", "cascade"):
        return Router(name)
    numbered = re.fullmatch(r"always-(\d+)", name)
    if not numbered:
        raise ValueError(f"unknown router {name!r}; known: {ROUTERS}")
    if num_experts is not None and int(numbered[1]) >= num_experts:
        raise ValueError(
            f"router {name!r} names an expert that does not exist: there are {num_experts} experts, "
            f"numbered 0 to {num_experts - 1}"
        )
    return Router("always", int(numbered[1]))


def certainty(kind: str) -> float:
    """The highest confidence there can be: of an empty sentence, and of one that is certain.

    Example:
        >>> certainty("probability"), certainty("log_probability")
        (1.0, 0.0)
    """
    return 1.0 if kind == "probability" else 0.0


def check_confidence(kind: str) -> None:
    """Raise ValueError for an unknown kind of confidence."""
    if kind not in CONFIDENCES:
        raise ValueError(f"unknown confidence {kind!r}; known: {', '.join(CONFIDENCES)}")


def check_threshold(threshold: float, kind: str) -> float:
    """The threshold, if it can be one for that kind of confidence.

    Probabilities are in [0, 1]: 0 exits all, anything above 1 (such as inf) exits none. Log-probabilities
    are at most 0: -inf exits all, anything above 0 none.

    Raises:
        ValueError: NaN, or below 0 for probabilities.

    Example:
        >>> check_threshold(0.8, "probability")
        0.8
    """
    check_confidence(kind)
    if math.isnan(threshold) or (kind == "probability" and threshold < 0):
        lowest = "0" if kind == "probability" else "-inf"
        raise ValueError(
            f"threshold {threshold:g} is outside the range of a {kind.replace('_', '-')}: give a number "
            f"from {lowest} (every sentence ends with the delegator) to inf (none does)"
        )
    return threshold
