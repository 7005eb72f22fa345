"""One translation of the test set by every network, and what fairseq-generate says of it."""

import pytest

from translation.commands.cli import main
from translation.evaluation.translations import Translations


@pytest.fixture(scope="session")
def parts(team, tmp_path_factory):
    """Two networks of the team as controls: a cascade whose translations are known."""
    folder = tmp_path_factory.mktemp("parts")
    for name in ("delegator", "expert-0"):
        words = ("take", team / "checkpoint_last.pt", name, "--out", folder / f"{name}.pt")
        assert main([str(word) for word in words]) == 0
    return folder


@pytest.fixture(scope="session")
def decode(corpus, team, parts):
    """The words of the command, and a file to write to."""

    def words(out, *more):
        return (
            *("decode", corpus.binary, "--path", team / "checkpoint_last.pt", "--cpu"),
            *("--reference", corpus.text / "test.en", "--beam", "3", "--num-workers", "0"),
            *("--user-dir", "translation", "--max-len-b", "20", "--out", out),
            *more,
        )

    return words


@pytest.fixture(scope="session")
def file(decode, parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("decoded") / "test.json"
    controls = (
        *("--control", f"expert-alone={parts / 'expert-0.pt'}"),
        *("--control", f"delegator-alone={parts / 'delegator.pt'}"),
    )
    assert main([str(word) for word in decode(out, *controls, "--batch-size", "7")]) == 0
    return out


@pytest.fixture(scope="session")
def translations(file):
    return Translations.load(file)


@pytest.fixture(scope="session")
def printed(generate):
    def call(*options):
        return generate("--max-len-b", "20", *options)

    return call
