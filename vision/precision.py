"""Choose the arithmetic that is fast on the processor at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:  # commands ask for the names alone
    import torch
    from torch import Tensor

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]  # that `autocast` knows
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Runtime = Literal["auto", "torch", "onnxruntime"]  # what computes: see `vision.export.accelerate`
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)


def choose_precision(precision: str = "auto") -> str:
    """Lightning precision for this machine; anything but "auto" is returned as it is.

    bf16 multiplies fast with AMX or AVX512-BF16 (5 to 10 times fp32 was measured) and is emulated
    otherwise (7 to 10 times *slower* than fp32 on an AVX2 machine), so the processor decides.

    Example:
        >>> choose_precision("32-true")
        '32-true'
    """
    if precision != "auto":
        return precision
    import torch

    if torch.cuda.is_available():
        return (
            "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
        )
    return "bf16-mixed" if _cpu_multiplies_bf16() else "32-true"


def _cpu_multiplies_bf16() -> bool:
    import torch

    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """Context in which networks run outside of Lightning, for the same arithmetic as in training.

    Example:
        >>> import torch
        >>> with autocast("cpu", "32-true"):
        ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        torch.float32
    """
    import torch

    kind = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    name = torch.device(device).type
    return torch.autocast(name, dtype=kind or torch.bfloat16, enabled=kind is not None)


def under_autocast(
    predict: Callable[[Tensor], object], precision: str
) -> Callable[[Tensor], object]:
    """The same function of a batch, run in the arithmetic of `autocast`: for timing."""

    def call(batch: Tensor) -> object:
        with autocast(batch.device, precision):
            return predict(batch)

    return call
