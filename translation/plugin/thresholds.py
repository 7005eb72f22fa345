"""What ``--threshold`` means: a number, or one that was stored with what it was fitted with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coe_core import check_fitted_with, stored_point
from coe_core.stored_points import COE

TASK, CASCADE = "translation", "cascade"  # as coe-translation calibrate stores them
_REMEDY = "decode and calibrate with these settings (coe-translation decode, calibrate)"


def is_stored(text: str) -> bool:
    """Whether a threshold is one that was stored, FILE:AIM.

    Raises:
        ValueError: neither that nor a number.

    Example:
        >>> is_stored("0.5"), is_stored("inf"), is_stored("thresholds.json:macs=60%")
        (False, False, True)
    """
    try:
        float(text)
    except ValueError:
        if ":" in text:
            return True
        raise ValueError(
            "threshold must be a number such as 0.6, or inf, or FILE:AIM of what coe-translation calibrate "
            f"wrote; got {text!r}"
        ) from None
    return False


def threshold_from(text: str, router: str, settings: Mapping[str, Any]) -> float:
    """The threshold that the user gives.

    Args:
        text: a number, or FILE:AIM such as thresholds.json:macs=60%.
        router: kind of it; a cascade has thresholds of its own.
        settings: that it is to be used with, by the names of the points' ``fitted_with``; those left out
            are not compared.

    Raises:
        ValueError: no number and no such file or aim (says which there are), or fitted with other settings.
    """
    if not is_stored(text):
        return float(text)
    point = stored_point(text, TASK, CASCADE if router == CASCADE else COE)
    check_fitted_with(f"threshold {text!r}", point.fitted_with, settings, _REMEDY)
    return point.threshold
