"""Exit status, one-line errors, signals, closed and narrow consoles."""

import argparse
import io
import json
import re
import signal
import sys
import types
import warnings

import pytest

from coe_core.errors import CoEError
from coe_core.support.command import (
    Command,
    Interrupted,
    at_least,
    build_parser,
    nearest,
    number_in,
    run_command,
)
from coe_core.support.faults import one_line


@pytest.fixture
def call(monkeypatch):
    """A program of two commands; ``say`` does what the test tells it to."""

    def run(*words, do=lambda arguments: None, libraries=()):
        module = types.ModuleType("of_a_test")
        module.add_options = lambda parser: parser.add_argument("overrides", nargs="*")
        module.run = do

        def add_all_options(parser):
            parser.set_defaults(more=())
            parser.add_argument("--size", type=at_least(1))
            parser.add_argument("--out")

        module.add_all_options = add_all_options
        module.run_all = do
        monkeypatch.setitem(sys.modules, "of_a_test", module)
        commands = [
            Command("say", "of_a_test", "Say it."),
            Command("take", "of_a_test", "Take 60% of it.", "all"),
        ]
        return run_command("coe", "A program.", commands, list(words), libraries=libraries)

    return run


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("wrong\n  input"), 2, "coe say: wrong input\n"),
        (CoEError("not reachable"), 2, "coe say: not reachable\n"),
        (FileNotFoundError(2, "No such file", "a b"), 2, "coe say: a b: No such file\n"),
        (MemoryError(), 2, "coe say: not enough memory: MemoryError\n"),
        (RuntimeError("[x] can't allocate memory: 9"), 2, "coe say: not enough memory: [x] can't"),
        (KeyboardInterrupt(), 130, "coe say: interrupted\n"),
        (Interrupted(signal.SIGTERM, "stopped after 3"), 143, "coe say: stopped after 3\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_errors(call, capsys, error, status, message):
    def fail(_):
        raise error

    assert call("say", do=fail) == status
    assert capsys.readouterr().err.startswith(message)


def test_a_warning_of_the_user_is_one_line(call, monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back afterwards
    assert call("say") == 0
    said = warnings.formatwarning("left out 3 files", UserWarning, "a.py", 7)
    assert said == "warning: left out 3 files\n"
    assert "a.py:7: FutureWarning" in warnings.formatwarning("old", FutureWarning, "a.py", 7)


def test_what_is_our_own_fault_shows_where(call):
    def fail(_):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        call("say", do=fail)


def test_what_a_library_raises_is_said_with_its_place(call, capsys):
    def ask(call_back=str):
        return lambda _: json.dumps({1: object()}, default=call_back)

    wrong = lambda _: json.loads(3)  # noqa: E731
    assert call("say", do=wrong, libraries=["json"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"coe say: TypeError in json/__init__.py, line \d+: the JSON .*\n", said)
    with pytest.raises(TypeError):
        call("say", do=wrong, libraries=["csv"])
    monkey = types.ModuleType("vision.of_a_test")  # a fault of ours that a library comes upon
    exec("def back(value):\n    raise KeyError(value)", monkey.__dict__)
    with pytest.raises(KeyError):
        call("say", do=ask(monkey.back), libraries=["json"])


def test_status(call):
    assert call("say") == 0
    assert call("say", do=lambda _: 1) == 1


def test_words_that_no_option_takes(call, capsys):
    seen = []
    assert call("say", "a=1", "b=2", do=lambda asked: seen.extend(asked.overrides)) == 0
    assert (
        call("take", "--size", "3", "--beam", "5", "x", do=lambda asked: seen.extend(asked.more))
        == 0
    )
    assert seen == ["a=1", "b=2", "--beam", "5", "x"]
    assert call("say", "--beam", "5") == 2
    error = "coe say: unrecognized arguments: --beam; see coe say --help\n"
    assert capsys.readouterr().err == error
    for words in (("take", "--size", "3", "--out", ""), ("say", "")):
        assert call(*words) == 2
        assert ": is empty; see coe" in capsys.readouterr().err
    assert call("says") == 2
    assert "'says' (choose from" in (error := capsys.readouterr().err)
    assert error.endswith("; nearest: say; see coe --help\n")
    assert call("take", "--size", "-3") == 2
    assert "argument --size: must be at least 1, got -3" in capsys.readouterr().err


def test_help_and_version(call, capsys):
    for words in (["--help"], ["take", "--help"], ["--version"]):
        assert call(*words) == 0
    assert "Take 60% of it." in capsys.readouterr().out


def test_no_abbreviations():
    module = types.ModuleType("of_a_test")
    module.add_options = lambda parser: parser.add_argument("--size")
    module.run = None
    sys.modules["of_a_test"] = module
    try:
        parser = build_parser("coe", "x", [Command("say", "of_a_test", "Say it.")])
    finally:
        del sys.modules["of_a_test"]
    assert parser.parse_known_args(["say", "--si", "3"])[1] == ["--si", "3"]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_any_letter_on_any_console(call, monkeypatch, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert call("say", do=lambda _: print("± a\udcff")) == 0
    shown = out.buffer.getvalue()
    assert shown == {"ascii": b"\\xb1 a\xff\n", "utf-8": b"\xc2\xb1 a\xff\n"}[encoding]


def test_a_closed_console(call, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert call("say", do=lambda _: print("lost")) == 0
    assert capsys.readouterr().err == "standard output is closed: what is printed is lost\n"


def test_a_full_disk_behind_the_console(call, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert call("say", do=lambda _: print("lost")) == 2
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_options():
    assert (at_least(0)("0"), number_in(0, 1)("1")) == (0, 1.0)
    for parse, text, message in (
        (at_least(1), "x", "'x' is no whole number"),
        (at_least(1), "1e3", "'1e3' is no whole number"),
        (at_least(1), str(10**30), f"must be at most {2**63 - 1}, got 1000"),
        (number_in(0, 1, low_is_in=False), "0", r"must be in \(0, 1\], got 0"),
        (number_in(0, 1), "nan", r"must be in \[0, 1\], got nan"),
        (at_least(1, 5), "6", "must be at most 5, got 6"),
        (number_in(0, 1), "x", "'x' is no number"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            parse(text)


def test_nearest():
    assert nearest("digts", ["digits", "joined"]) == "; nearest: digits"
    assert nearest("zzz", ["digits"]) == ""
    assert one_line(ValueError()) == "ValueError"
