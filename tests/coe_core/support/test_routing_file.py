"""routing.json of both tasks: what is read, what is refused in one line, and files beside it."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_core.support.exports import Parity, write_routing
from coe_core.support.routing_file import (
    DamagedExportError,
    content_digest,
    read_routing,
    stored_setting,
    verify_files,
)

POINT = {"threshold": 0.8, "rough_weight": 0.25}
VISION = {
    "task": "vision",
    "confidence": "max_probability",
    "delegator": {"file": "delegator.onnx", "macs": 10, "weights": "float32"},
    "experts": [{"file": "expert_0.onnx", "macs": 90, "weights": "float32"}],
    "default": {"name": "none", "threshold": math.inf, "rough_weight": 0.0},
    "operating_points": {"half": POINT},
    "classes": ["cat", "dog"],
    "preprocess": {"size": 8, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3, "resize": "crop"},
    "curve": None,
    "opset": 18,
    "provenance": {},
}
TRANSLATION = {
    "task": "translation",
    "confidence": "log_probability",
    "delegator": {"file": "delegator", "macs": None, "weights": "float32"},
    "experts": [{"file": "expert_0", "macs": None, "weights": "int8"}],
    "default": {"name": "some", "threshold": -0.5, "rough_weight": 0.0},
    "operating_points": {"some": {"threshold": -0.5, "rough_weight": 0.0}},
    "search": {"beam": 5, "lenpen": 1.0, "max_length": 200},
    "end": "</s>",
    "max_source_tokens": 1024,
    "max_target_tokens": 1024,
    "selection": "selection",
    "sentencepiece": None,
    "provenance": {},
}
BOTH = {"vision": VISION, "translation": TRANSLATION}


def write_files(folder: Path, task: str) -> None:
    names = ["delegator.onnx", "expert_0.onnx"]
    if task == "translation":
        names = [f"{name}/model.bin" for name in ("delegator", "expert_0", "selection")]
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())


@pytest.fixture(params=["vision", "translation"])
def task(request) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path, task) -> Path:
    write_files(tmp_path, task)
    write_routing(tmp_path, BOTH[task], None)
    return tmp_path


def change(folder: Path, **values: object) -> None:
    """As somebody would who knows of the digest."""
    path = folder / "routing.json"
    routing = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({**routing, "sha256": content_digest(routing)}))


def test_what_was_written_is_read(folder, task):
    routing = read_routing(folder, task)
    assert {name: routing[name] for name in BOTH[task]} == BOTH[task]
    assert routing["format"] == 2
    verify_files(folder, routing, [routing["delegator"]["file"], routing["experts"][0]["file"]])
    assert json.loads((folder / "routing.json").read_text())["default"]["threshold"] in (
        "inf",
        -0.5,
    )


def test_files_are_compared_with_their_digests(folder, task):
    routing = read_routing(folder, task)
    name = routing["experts"][0]["file"]
    path = folder / name if task == "vision" else folder / name / "model.bin"
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(DamagedExportError, match=rf"{path} is damaged: its sha256 begins \w+"):
        verify_files(folder, routing, [name])
    verify_files(folder, routing, [routing["delegator"]["file"]])
    path.write_bytes(content[:-1])
    with pytest.raises(DamagedExportError, match=rf"{path} is damaged: it has \d+ bytes, exported"):
        verify_files(folder, routing, [name])
    path.unlink()
    with pytest.raises(DamagedExportError, match=rf"{path} is missing: copy the whole export"):
        verify_files(folder, routing, [name])
    with pytest.raises(DamagedExportError, match="has no digest of other"):
        verify_files(folder, routing, ["other"])
    os.mkfifo(path)  # the libraries would wait for it
    with pytest.raises(DamagedExportError, match=rf"{path} is no regular file"):
        read_routing(folder, task, verify=False)


def test_a_changed_number_is_seen(folder, task):
    path = folder / "routing.json"
    path.write_text(path.read_text().replace("0.25", "0.26").replace("-0.5", "-0.6"))
    with pytest.raises(DamagedExportError, match=r"not as it was exported .its digest differs"):
        read_routing(folder, task)
    read_routing(folder, task, verify=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 3}, "has format 3, this runner reads 1 to 2"),
        ({"format": True}, "has format true"),
        ({"task": "speech"}, 'is of task "speech", this runner is for'),
        ({"confidence": "certainty"}, 'confidence is "certainty", known: '),
        ({"experts": []}, "it has no experts"),
        ({"experts": {"file": "x"}}, 'experts is {"file": "x"}, not a list'),
        ({"experts": [3]}, r"experts\[0\] is 3, not a table"),
        ({"delegator": {"file": "../x"}}, r'delegator.file is "../x", not a file of the export'),
        ({"delegator": {"file": "/etc/x"}}, "not a file of the export"),
        ({"delegator": {"file": "x", "macs": 1.5}}, "delegator.macs is 1.5, not a whole number"),
        ({"default": {"threshold": "half"}}, 'default.threshold is "half", not a number'),
        ({"default": {"threshold": 1}}, "it has no default.rough_weight"),
        ({"default": {"threshold": 10**400, "rough_weight": 0}}, "not a number"),
        ({"operating_points": {"a\nb": 1}}, r'operating_points."a\\nb" is 1, not a table'),
        ({"operating_points": None}, "operating_points is null, not a table"),
        ({"files": {"x": {"bytes": -1}}}, 'files."x".bytes is -1, not a whole number from 0'),
    ],
)
def test_values_of_other_kinds(folder, task, values, message):
    change(folder, **values)
    with pytest.raises(DamagedExportError, match=message) as refused:
        read_routing(folder, task)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("vision", {"classes": ["a", 1]}, r'classes is \["a", 1\], not a list of names'),
        ("vision", {"preprocess": {"size": 0}}, "preprocess.size is 0, not one side or two"),
        ("vision", {"preprocess": {"size": [8, "a"]}}, "preprocess.size is .8, .a.., not one side"),
        (
            "vision",
            {"preprocess": {"size": 8, "channels": 0}},
            "preprocess.channels is 0, not a whole",
        ),
        (
            "vision",
            {"preprocess": {"size": 8, "channels": 2, "resize": "crop", "range": [1, 0]}},
            "preprocess.range is .1, 0., not a low and a high value",
        ),
        ("vision", {"default": {"threshold": -1, "rough_weight": 0}}, "threshold is -1, below 0"),
        ("vision", {"delegator": {"file": "x"}}, "delegator has no macs"),
        ("translation", {"search": {"beam": 0}}, "search.beam is 0, not a whole number from 1"),
        ("translation", {"end": None}, "end is null, not a text"),
        ("translation", {"sentencepiece": ""}, 'sentencepiece is "", not a file of the export'),
    ],
    indirect=["task"],
)
def test_values_of_one_task(folder, task, values, message):
    change(folder, **values)
    with pytest.raises(DamagedExportError, match=message):
        read_routing(folder, task)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged: not JSON"),
        (b"{", "is damaged: not JSON"),
        (b"\xff\xfe", "is damaged: not JSON"),
        (b"[" * 100_000, "is damaged: not JSON"),
        (b"[]", "is no table of names and values"),
        (b"null", "is no table of names and values"),
        (b"{}", "has format null"),
        (b'{"format": 1}', "is damaged: it is of no task"),
    ],
)
def test_other_content(tmp_path, content, message):
    (tmp_path / "routing.json").write_bytes(content)
    with pytest.raises(DamagedExportError, match=message):
        read_routing(tmp_path, "vision")


def test_no_export(tmp_path):
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(
            DamagedExportError, match=f"{place} is not an export: it has no file rou"
        ):
            read_routing(place, "vision")
    os.mkfifo(tmp_path / "routing.json")
    with pytest.raises(DamagedExportError, match=r"it has no file routing.json"):
        read_routing(tmp_path, "vision")  # and does not wait


def test_format_1_is_read(tmp_path):
    old = {
        **{"format": 1, "classes": ["a"], "preprocess": VISION["preprocess"], "opset": 18},
        **{"confidence": "max_probability", "delegator": {"file": "d.onnx", "macs": 1}},
        **{"experts": [{"file": "e.onnx", "macs": 2}], "curve": None, "checkpoint": "last.ckpt"},
        "default": {"name": "x", "threshold": "inf", "rough_weight": 0.5},
        "operating_points": {"best": POINT},
    }
    (tmp_path / "routing.json").write_text(json.dumps(old))
    routing = read_routing(tmp_path, "vision")
    assert routing["default"] == {"name": "x", "threshold": math.inf, "rough_weight": 0.5}
    verify_files(tmp_path, routing, ["d.onnx"])  # it has no digests
    with pytest.raises(
        DamagedExportError, match='is of task "vision", this runner is for translatio'
    ):
        read_routing(tmp_path, "translation")
    old = {
        **{"format": 1, "num_experts": 2, "confidence": "probability", "default": "inf"},
        **{"thresholds": {"fast": 0.25}, "end": "</s>", "max_source_tokens": 1024},
        **{"sentencepiece": None, "weights": "int8", "provenance": {}},
        "search": TRANSLATION["search"],
    }
    (tmp_path / "routing.json").write_text(json.dumps(old))
    routing = read_routing(tmp_path, "translation")
    assert stored_setting(routing) == (math.inf, 0.0)
    assert stored_setting(routing, "fast") == (0.25, 0.0)
    assert [expert["file"] for expert in routing["experts"]] == ["expert_0", "expert_1"]
    old["num_experts"] = 2_000_000_000
    (tmp_path / "routing.json").write_text(json.dumps(old))
    with pytest.raises(DamagedExportError, match="num_experts is 2000000000"):
        read_routing(tmp_path, "translation")


def test_settings(folder, task):
    routing = read_routing(folder, task)
    name = next(iter(routing["operating_points"]))
    assert stored_setting(routing) == (routing["default"]["threshold"], 0.0)
    assert stored_setting(routing, threshold=3.0)[0] == 3.0
    with pytest.raises(ValueError, match=f"not both: '{name}' and 3"):
        stored_setting(routing, name, 3.0)
    with pytest.raises(ValueError, match=f"no operating point 'fast'; stored: {name}"):
        stored_setting(routing, "fast")
    for threshold in (math.nan, *([-1.0] if task == "vision" else [])):
        with pytest.raises(ValueError, match=f"threshold must be .*, got {threshold:g}"):
            stored_setting(routing, threshold=threshold)


@pytest.mark.process
def test_the_reader_loads_nothing_of_others():
    code = "import coe_core.support.routing_file, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numpy", "coe_core.support.files"} & set(loaded)


def test_parity():
    parity = Parity("runner.py", 10, 8, 2, 8, 1e-5, 1e-4)
    assert parity.holds
    assert not parity._replace(ties=1).holds
    assert not parity._replace(max_difference=2e-4).holds


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Paths to every value inside."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


@pytest.mark.fuzz
@given(st.sampled_from(["vision", "translation"]), st.data())
def test_any_change_is_read_or_refused_in_one_line(tmp_path_factory, task, data):
    folder = tmp_path_factory.getbasetemp() / f"routing-{task}"
    if not folder.exists():
        folder.mkdir()
        write_files(folder, task)
        write_routing(folder, BOTH[task], None)
    content = folder / "changed" / "routing.json"
    content.parent.mkdir(exist_ok=True)
    text = (folder / "routing.json").read_bytes()
    if data.draw(st.booleans()):  # a value of another kind, or none at all
        routing = json.loads(text)
        *path, last = data.draw(st.sampled_from(places(routing)[1:]))
        inside = routing
        for key in path:
            inside = inside[key]
        if data.draw(st.booleans()):
            del inside[last]
        else:
            inside[last] = data.draw(plain)
        content.write_text(json.dumps(routing), encoding="utf-8")
    else:  # a byte flipped, or cut
        place = data.draw(st.integers(0, len(text) - 1))
        flipped = bytes([text[place] ^ data.draw(st.integers(1, 255))])
        rest = text[place + 1 :] if data.draw(st.booleans()) else b""
        content.write_bytes(text[:place] + flipped + rest)
    changed = content.parent
    read = read_or_refused(lambda: read_routing(changed, task))
    assert read in (None, read_routing(folder, task))  # such as a space added
    routing = read_or_refused(lambda: read_routing(changed, task, verify=False))
    if routing is not None:
        for name in (None, *routing["operating_points"]):
            stored_setting(routing, name)
        file = routing["delegator"]["file"]
        read_or_refused(lambda: verify_files(folder, routing, [file]))


def read_or_refused(call):
    """The result, or None after a refusal in one line."""
    try:
        return call()
    except DamagedExportError as error:
        refusal = str(error)
    assert "\n" not in refusal
    return None
