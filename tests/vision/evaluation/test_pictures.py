"""Pictures with class names of any letters and lengths; the caller's matplotlib stays as it is."""

import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from coe_core import trade_off_curve
from vision.evaluation.evaluate import _file_name
from vision.evaluation.pictures import draw_selection, draw_trade_off
from vision.evaluation.summary import summarise
from vision.evaluation.table import PredictorRow


def draw(path, classes):
    n = len(classes)
    draw_selection(path, "title $x$", classes, torch.arange(n), torch.arange(n) % 2, 2)


@pytest.mark.slow
def test_class_names_of_any_letters_and_lengths(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tmp_path / "plain.png", ["cat", "b$x$", "a" * 250, "two\nlines\r", "<b>"])
    assert (tmp_path / "plain.png").read_bytes().startswith(b"\x89PNG")


def test_a_long_title_is_not_cut(tmp_path):
    """Two experts make a narrow picture: its title takes as many lines as it needs."""
    path, classes = tmp_path / "x.png", ["cat", "dog"] * 30
    draw_selection(path, "many words " * 9, classes, torch.arange(60), torch.arange(60) % 2, 2)
    pixels = np.asarray(Image.open(path).convert("L"))
    assert (pixels < 128).any()
    assert (pixels[:, -2:] == 255).all()


def test_letters_that_no_font_has_are_named_once(tmp_path):
    """U+0378 is no letter of any script, so that no font has it."""
    with pytest.warns(UserWarning, match=r"x\.png: no installed font has \u0378, drawn as bo") as w:
        draw(tmp_path / "x.png", ["a\u0378", "b\u0378\u0378", "c"])
    assert len(w) == 1
    assert (tmp_path / "x.png").is_file()


def test_the_callers_matplotlib_is_left_alone(tmp_path):
    import matplotlib

    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    curve = trade_off_curve(torch.rand(9), torch.ones(9), torch.ones(9), 1e6, 2e6)
    lines = summarise([[PredictorRow("a", 0.5, 1e6), PredictorRow("b", float("nan"), 2e6)]])
    draw_trade_off(tmp_path / "x.png", "title", {"CoE": [curve, curve]}, lines)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert (dict(matplotlib.rcParams), matplotlib.get_backend()) == (before, backend)
    assert "matplotlib.pyplot" not in sys.modules or backend


def test_names_of_examples():
    assert _file_name("a/b:c\r\0") == "a_b_c__"
    assert len(_file_name("x" * 250)) == 100
    assert len(_file_name("\u732b" * 250).encode()) <= 100
    assert _file_name("caf\udce9") == "caf_"
