"""Parsers of texts, points and checkpoints: a result, or one line. `make fuzz` for longer."""

import argparse
import contextlib
import json
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coe_core import CoEError
from translation.corpora.lines import read_lines, read_plain_lines, split_lines
from translation.corpora.text import hypotheses_in
from translation.evaluation.calibrate import load_points
from translation.evaluation.reference import check_reference
from translation.evaluation.scripts import spaces_warning
from translation.evaluation.translations import Translations
from translation.generation.routers import Router, check_threshold, parse_router
from translation.plugin.thresholds import threshold_from

fuzz = pytest.mark.fuzz
LINES = st.lists(
    st.one_of(
        st.text(max_size=30),
        st.builds(
            "{}-{}\t{}\t{}".format, st.sampled_from("STHDPR"), st.integers(), st.floats(), st.text()
        ),
        st.builds("D-{}\t0\tx".format, st.integers(0, 10**30)),
    ),
    max_size=8,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@contextlib.contextmanager
def one_line():
    """Whatever happens inside, an error is ours or the user's, and says so in one line."""
    try:
        yield
    except (ValueError, CoEError, OSError) as error:
        text = str(error)
        if not text or len(text) > 2000 or "\n" in text.strip():
            raise AssertionError(f"not one line: {text[:300]!r}") from error


@fuzz
@given(st.binary(max_size=200))
def test_bytes_as_texts(content):
    with one_line():
        lines = split_lines(content, "x")
        kept = content.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n")
        assert len(lines) == kept.count(b"\n") + 1
        assert not any("\n" in line for line in lines)


@fuzz
@given(st.binary(max_size=60), st.sampled_from([b"", b"\x1f\x8b\x08", b"\xff\xfe", b"PK\x03\x04"]))
def test_bytes_of_files(tmp_path_factory, content, start):
    path = tmp_path_factory.getbasetemp() / "fuzzed-text"
    path.write_bytes(start + content)
    for read in (read_lines, read_plain_lines):
        with one_line():
            read(path)
    with one_line():
        lines = read_plain_lines(path)
        with open(path, encoding="utf-8") as file:  # as fairseq reads it
            assert len(file.readlines()) == len(lines)


@fuzz
@given(LINES)
def test_output_of_fairseq(lines):
    with one_line():
        texts = hypotheses_in(lines, "x")
        assert len(texts) <= max(1, len(lines))


@fuzz
@given(LINES, st.randoms(use_true_random=False))
def test_references(lines, draw):
    other = lines[:]
    draw.shuffle(other)
    with one_line():
        check_reference(lines, other, other, "x")
    assert check_reference(lines, lines, lines, "x") is None
    spaces_warning(lines, None)


@fuzz
@given(JSON)
def test_stored_points_and_translations(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_text(json.dumps(value))
    for load in (load_points, Translations.load):
        with one_line():
            load(path)
    with one_line():
        threshold_from(f"{path}:best", "learned", {})


GOOD = {
    "provenance": {"beam": 5},
    "source": ["a", "b"],
    "reference": ["x", "y"],
    "selection": {"logits": [[0.0], [1.0]], "macs": [1.0, 1.0], "seconds": [1.0, 1.0]},
    "networks": {
        name: {
            "text": ["x", "y"],
            "confidence": [0.5, 0.5],
            "macs": [1.0, 1.0],
            "seconds": [1.0, 1.0],
        }
        for name in ("delegator", "expert-0")
    },
}


def put(tree, draw, value):
    """Another value, or none, at a random place of a tree."""
    while True:
        key = draw.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        inside = tree[key]
        if not isinstance(inside, (dict, list)) or not inside or draw.random() < 0.3:
            break
        tree = inside
    if draw.random() < 0.2:
        del tree[key]
    else:
        tree[key] = value


@fuzz
@given(JSON, st.randoms(use_true_random=False))
def test_translations_with_one_wrong_value(tmp_path_factory, value, draw):
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    values = json.loads(json.dumps(GOOD))
    put(values, draw, value)
    path.write_text(json.dumps(values))
    with one_line():
        loaded = Translations.load(path)
        assert len(loaded) == 2


@fuzz
@given(st.text(max_size=30), st.text(max_size=12))
def test_thresholds_and_routers(threshold, router):
    with one_line():
        value = threshold_from(threshold, "learned", {})
        assert check_threshold(value, "log_probability") == value
    with one_line():
        assert isinstance(parse_router(router, 3), Router)


@pytest.fixture(scope="module")
def state(team):
    import translation

    translation.register()
    return torch.load(team / "checkpoint_last.pt", weights_only=True)


@fuzz
@given(JSON, st.randoms(use_true_random=False))
def test_checkpoints_with_one_wrong_value(state, tmp_path_factory, value, draw):
    """Of the configuration: it is refused, or what it names is still known."""
    from translation.plugin.checkpoints import take_network
    from translation.plugin.trust import check_configuration, check_sizes

    changed = {**state, "cfg": json.loads(json.dumps(state["cfg"]))}
    put(changed["cfg"][draw.choice(["model", "task", "criterion"])], draw, value)
    if draw.random() < 0.3:
        changed |= {"args": argparse.Namespace(**changed["cfg"]["model"]), "cfg": None}
    with one_line():
        check_configuration(changed, "x")
        check_sizes(changed, "x")
    with one_line():
        take_network(changed, "expert-0")


@fuzz
@given(st.integers(0, 2**32))
def test_damaged_checkpoints(team, tmp_path_factory, seed):
    from translation.plugin.checkpoints import load_state

    draw = random.Random(seed)
    content = bytearray((team / "checkpoint_last.pt").read_bytes())
    for _ in range(draw.randint(1, 3)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    if draw.random() < 0.3:
        del content[draw.randrange(len(content)) :]
    path = tmp_path_factory.getbasetemp() / "fuzzed.pt"
    path.write_bytes(content)
    with one_line():
        load_state(path)
