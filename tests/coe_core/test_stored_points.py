"""Files of points and curves: one schema, older ones read on, anything else refused in one line."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_core import (
    CalibratedCurve,
    Choice,
    OperatingPoint,
    PairedDifference,
    Rival,
    StoredPoints,
    check_fitted_with,
    load_curves,
    load_points,
    save_curves,
    save_points,
    stored_point,
)

FITTED = {"checkpoint": "a" * 64, "confidence": "probability", "beam": 5}
POINT = OperatingPoint(
    "fast",
    math.inf,
    "macs",
    2e8,
    0.0,
    0.8,
    1.9e8,
    "macs",
    50,
    "v",
    "2026-01-01",
    fitted_with=FITTED,
)
CURVE = CalibratedCurve(
    [math.inf, 0.5], [0.0, 1.0], [0.9, 0.8], [2.0, 1.0], 0.3, 50, "v", "2026-01-01", FITTED
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "points.json"


@pytest.mark.parametrize("task", ["vision", "translation"])
def test_both_tasks_have_one_schema(path, task):
    stored = StoredPoints({"CoE": [POINT], "cascade": []}, {"commit": "1234"})
    save_points(path, task, stored)
    assert load_points(path, task) == stored
    content = json.loads(path.read_text())
    assert list(content) == ["task", "points", "provenance"]
    assert content["points"]["CoE"][0]["threshold"] == "inf"
    assert stored_point(f"{path}:fast", task) == POINT
    other = {"vision": "translation", "translation": "vision"}[task]
    with pytest.raises(ValueError, match=rf"it is of the task {task}, not of {other}"):
        load_points(path, other)
    with pytest.raises(ValueError, match=r"has no threshold named 'slow'; it has: fast"):
        stored_point(f"{path}:slow", task)
    save_curves(path, task, {"CoE": CURVE, "cascade": CURVE})
    assert load_curves(path, task) == {"CoE": CURVE, "cascade": CURVE}
    with pytest.raises(ValueError, match=rf"it is of the task {task}"):
        load_curves(path, other)


def without_fitted(record):
    return {name: value for name, value in record.to_dict().items() if name != "fitted_with"}


def test_files_of_older_versions(path):
    older = without_fitted(POINT)
    path.write_text(json.dumps({"fast": older}))  # vision's
    assert load_points(path, "vision").named()["fast"].fitted_with == {}
    path.write_text(json.dumps({"points": {"CoE": [older]}, "provenance": {"beam": 5}}))
    assert load_points(path, "translation").provenance == {"beam": 5}
    path.write_text(json.dumps(without_fitted(CURVE)))
    assert load_curves(path, "vision")["CoE"].macs == [2.0, 1.0]
    path.write_text(json.dumps({"task": "vision", **CURVE.to_dict()}))  # with a task, of one system
    assert load_curves(path, "vision") == {"CoE": CURVE}


def chosen(system):
    rival = Rival(1, 0.9, 10.0, PairedDifference(0.0, -0.1, 0.1, 1.0), False)
    return Choice(system, system, "quality", 0.05, 50, {system: rival})


def test_which_system_a_point_is_to_be_used_of(path):
    stored = StoredPoints({"CoE": [POINT], "single": [POINT]}, {}, {"fast": chosen("single")})
    save_points(path, "vision", stored)
    assert load_points(path, "vision") == stored
    assert stored.deployed("fast") == "single"
    assert stored.deployed("slow") == "CoE"  # of an older version, which chose none


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deployed": "other"}, "deployed is 'other', which is none of its rivals"),
        ({"level": "x"}, "level must be a number, got 'x'"),
        ({"rivals": []}, r"rivals must be an object, got \[\]"),
        ({"rivals": {"single": {}}}, r"not a rival: it has the fields \[\], not \["),
        ({"more": 1}, r"not a choice: it has the fields"),
        (None, "a choice must be an object, got None"),
        ({}, "'fast' is to be served by 'single', which has no such point"),
    ],
)
def test_no_choice(path, change, message):
    save_points(path, "vision", StoredPoints({"CoE": [POINT]}, {}, {"fast": chosen("single")}))
    content = json.loads(path.read_text())
    choice = content["choices"]["fast"]
    content["choices"]["fast"] = None if change is None else {**choice, **change}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_points(path, "vision")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(name=st.sampled_from(sorted(POINT.to_dict())), value=JSON)
def test_a_field_of_any_other_value(tmp_path_factory, name, value):
    path = tmp_path_factory.mktemp("x") / "x.json"
    path.write_text(
        json.dumps({"task": "vision", "points": {"CoE": [{**POINT.to_dict(), name: value}]}})
    )
    try:
        point = load_points(path, "vision").points["CoE"][0]
    except ValueError as error:
        line = str(error)
    else:
        line = ""
        assert (
            type(getattr(point, name)) is type(getattr(POINT, name))
            or name == "guarantee"
            or (name == "value" and value is None)
        )
    assert "\n" not in line


@given(
    value=JSON,
    key=st.sampled_from(
        ["points", "task", "provenance", "CoE", "threshold", "macs", "choices", "curves"]
    ),
)
def test_any_other_file(tmp_path_factory, value, key):
    path = tmp_path_factory.mktemp("x") / "x.json"
    for content in (value, {key: value}, {"points": {"CoE": value}}):
        path.write_text(json.dumps(content))
        for read in (load_points, load_curves):
            try:
                read(path, "vision")
            except ValueError as error:
                line = str(error)
                assert line.startswith(str(path))
                assert "\n" not in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"macs": [1.0]}, "its columns differ in length or are empty"),
        ({"macs": [1.0, "x"]}, "macs must be a number, got 'x'"),
        ({"macs": [1.0, "inf"]}, "macs must be finite numbers"),
        ({"num_samples": True}, "num_samples must be a whole number, got True"),
        ({"threshold": 0.5}, "threshold must be a list, got 0.5"),
        ({"more": 1}, r"unknown fields \['more'\]"),
    ],
)
def test_no_curve(path, changes, message):
    path.write_text(json.dumps({**CURVE.to_dict(), **changes}))
    with pytest.raises(ValueError, match=message):
        load_curves(path, "vision")


def test_fitted_elsewhere():
    here = {"checkpoint": "b" * 64, "confidence": "log_probability", "beam": 5, "router": "learned"}
    with pytest.raises(
        ValueError,
        match=r"^it was fitted with checkpoint a{12}\.\.\., not b{12}\.\.\.; confidence probability, not "
        "log_probability: calibrate again$",
    ):
        check_fitted_with("it", FITTED, here, "calibrate again")
    check_fitted_with("it", FITTED, {"beam": 5}, "")
    check_fitted_with("it", {}, here, "")  # of an older version, which does not know
