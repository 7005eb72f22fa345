"""What the plugin refuses in fairseq's commands is said in one line; other errors show where they arose."""

import sys

import translation
from translation.corpora.lines import read_lines


def error_of(call):
    try:
        call()
    except Exception as error:
        return error


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
