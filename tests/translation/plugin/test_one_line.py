"""In fairseq's commands what is refused is one line; an error of our own shows where it arose."""

import sys

import translation
from translation.corpora.lines import read_lines


def error_of(call):
    try:
        call()
    except Exception as error:
        return error


def test_what_fairseq_raises_has_its_reason_and_place(monkeypatch, capsys):
    """Whatever it raises for a wrong option; the way there helps no user."""
    from fairseq import options
    from fairseq.data import Dictionary, data_utils

    monkeypatch.setattr(sys, "excepthook", None)
    monkeypatch.setattr(sys, "argv", ["/bin/fairseq-train"])
    translation.say_errors_in_one_line()
    for call, kind in (
        (lambda: Dictionary().index(3), "AssertionError"),
        (lambda: options.eval_str_list([1], type=None), "TypeError"),
        (lambda: data_utils.post_process("a", "no-such-symbol"), "NotImplementedError"),
    ):
        error = error_of(call)
        sys.excepthook(type(error), error, error.__traceback__)
        said = capsys.readouterr().err
        assert said.startswith(f"fairseq-train: {kind} in "), said
        assert (", line " in said, said.count("\n")) == (True, 1)


def test_what_is_refused_and_what_is_a_fault(monkeypatch, capsys, tmp_path):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *three: seen.append(three[1]))
    monkeypatch.setattr(sys, "argv", ["/bin/fairseq-generate"])
    translation.say_errors_in_one_line()
    refused = error_of(lambda: read_lines(tmp_path / "none"))
    faults = error_of(lambda: int("three")), error_of(lambda: {}["none"])
    for error in (refused, *faults):
        sys.excepthook(type(error), error, error.__traceback__)
    assert capsys.readouterr().err == f"fairseq-generate: {tmp_path / 'none'}: no such file\n"
    assert seen == list(faults)
