"""The arithmetic follows the processor."""

import pytest
import torch

from vision.precision import autocast, choose_precision


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "chosen"),
    [(False, False, "32-true"), (True, False, "bf16-mixed"), (False, True, "bf16-mixed")],
)
def test_processor(monkeypatch, amx, avx512_bf16, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert choose_precision() == chosen


@pytest.mark.parametrize(("supported", "chosen"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_cuda(monkeypatch, supported, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert choose_precision("auto") == chosen


def test_as_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_precision("64-true") == "64-true"


def test_autocast():
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    for precision, dtype in (("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)):
        with autocast("cpu", precision):
            assert layer(x).dtype == dtype
