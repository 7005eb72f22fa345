"""Experts in 8 bits: static quantisation by onnxruntime, its ranges measured on the run's own images."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

BATCH = 16


class _Batches:
    """The images in the form that onnxruntime's calibration asks for."""

    def __init__(self, pixels: np.ndarray):
        self._parts = iter(pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        part = next(self._parts, None)
        return None if part is None else {"images": part}


@contextmanager
def _without_advice() -> Iterator[None]:
    """onnxruntime advises to prepare the network first even where that was done."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def quantise(path: Path, pixels: UInt8[Tensor, "n ch h w"]) -> None:
    """Replace an exported network by one whose convolutions and products run in int8.

    Weights are int8 per channel, activations uint8. Meant for experts: the delegator stays as it is,
    so that routes and thresholds are those of the run.

    Args:
        path: of the ONNX file; replaced.
        pixels: decoded images from which the ranges of the activations are measured.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with _without_advice(), TemporaryDirectory(dir=path.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            _Batches(pixels.numpy()),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
