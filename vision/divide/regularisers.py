"""What happens to weight decay, dropout and their kin when one network becomes S: rules by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from vision.errors import nearest

REGULARISER_RULES: dict[str, Callable[[float, int], float]] = {
    "none": lambda value, s: value,
    "linear": lambda value, s: value / s,
    "sqrt": lambda value, s: value / math.sqrt(s),
    "exponential": lambda value, s: value * math.exp(1 / s - 1),
}

# PAPER. Label smoothing, mixup, erasing, augmentation and Shake-Shake's noise are not divided.
DEFAULTS = {
    "weight_decay": "exponential",
    "dropout": "sqrt",
    "drop_path": "sqrt",
    "drop_block": "sqrt",
    "shake_drop": "sqrt",
}
_RESNET_DROPOUT = "linear"

# Kind of regulariser behind an option of timm's, torchvision's and our own constructors.
KINDS = {
    "weight_decay": "weight_decay",
    **dict.fromkeys(("drop_rate", "dropout", "head_dropout", "attention_dropout"), "dropout"),
    **dict.fromkeys(("proj_drop_rate", "attn_drop_rate", "pos_drop_rate"), "dropout"),
    **dict.fromkeys(("drop_path_rate", "stochastic_depth_prob"), "drop_path"),
    "drop_block_rate": "drop_block",
    "shake_drop": "shake_drop",
}


class Regulariser(NamedTuple):
    """One regulariser before and after division."""

    option: str  # of the network's constructor, or "weight_decay" of the recipe
    kind: str  # of DEFAULTS
    rule: str  # of REGULARISER_RULES
    before: float
    after: float


def divide_regularisers(
    options: Mapping[str, object],
    s: int,
    resnet_family: bool = False,
    rules: Mapping[str, str] | None = None,
) -> tuple[Regulariser, ...]:
    """Divide every regulariser among the options; those that are off (0) are left out. PAPER.

    Args:
        options: of the undivided network and, as "weight_decay", of its recipe; others are passed
            over.
        s: number of networks, at least 1.
        resnet_family: dropout p becomes p / s, not p / sqrt(s).
        rules: kind -> rule, for kinds that shall not go by the published rule; "none" switches a
            kind's division off.

    Raises:
        ValueError: an unknown kind or rule (the nearest known one is named), or a regulariser that is
            negative or not finite.

    Example:
        >>> [wd] = divide_regularisers({"weight_decay": 5e-4, "depth": 28}, s=2)
        >>> round(wd.after / wd.before, 4)
        0.6065
        >>> [dropout] = divide_regularisers({"drop_rate": 0.3}, s=4, rules={"dropout": "none"})
        >>> dropout.after
        0.3
    """
    chosen = {**DEFAULTS, "dropout": _RESNET_DROPOUT if resnet_family else DEFAULTS["dropout"]}
    for kind, rule in (rules or {}).items():
        if kind not in DEFAULTS:
            raise ValueError(
                f"unknown regulariser {kind!r}{nearest(kind, DEFAULTS)}; there are "
                f"{', '.join(DEFAULTS)}"
            )
        if rule not in REGULARISER_RULES:
            raise ValueError(
                f"unknown rule {rule!r} for {kind}{nearest(rule, REGULARISER_RULES)}; there are "
                f"{', '.join(REGULARISER_RULES)}"
            )
        chosen[kind] = rule
    regularisers = []
    for option, value in options.items():
        kind = KINDS.get(option, "")
        if not kind or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{option} must be finite and at least 0 to be divided, got {value}")
        if value:
            rule = chosen[kind]
            regularisers.append(
                Regulariser(option, kind, rule, value, REGULARISER_RULES[rule](value, s))
            )
    return tuple(regularisers)
