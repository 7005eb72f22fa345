"""A small German-English corpus of numbers in words, and fairseq's own commands as users call them."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
ONES = [
    *[("null", "zero"), ("eins", "one"), ("zwei", "two"), ("drei", "three"), ("vier", "four")],
    *[("fünf", "five"), ("sechs", "six"), ("sieben", "seven"), ("acht", "eight"), ("neun", "nine")],
]
TENS = [("zwanzig", "twenty"), ("dreißig", "thirty"), ("vierzig", "forty"), ("fünfzig", "fifty")]
UNITS = [("Meter", "metres"), ("Jahre", "years"), ("Euro", "euros"), ("Tage", "days")]


def number(draw: random.Random) -> tuple[str, str]:
    """Below 60: German says the ones first."""
    one, ten = draw.choice(ONES[1:]), draw.choice(TENS)
    return draw.choice([one, ten, (f"{one[0]} und {ten[0]}", f"{ten[1]} {one[1]}")])


def pair(draw: random.Random) -> tuple[str, str]:
    """One to three numbers with units."""
    parts = []
    for _ in range(draw.randint(1, 3)):
        amount, unit = number(draw), draw.choice(UNITS)
        parts.append((f"{amount[0]} {unit[0]}", f"{amount[1]} {unit[1]}"))
    return " und ".join(part[0] for part in parts), " and ".join(part[1] for part in parts)


def write_pairs(prefix: Path, pairs: list[tuple[str, str]]) -> None:
    for place, language in enumerate(("de", "en")):
        lines = "".join(one[place] + "\n" for one in pairs)
        prefix.with_name(f"{prefix.name}.{language}").write_text(lines, encoding="utf-8")


class Shell:
    """Runs the commands in processes of their own, one thread each."""

    def __call__(
        self, *command: object, given: str | None = None, fails: bool = False
    ) -> subprocess.CompletedProcess:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        words = [str(word) for word in command]
        script = Path(sys.executable).with_name(words[0])
        done = subprocess.run(
            [sys.executable, script, *words[1:]],
            input=given,
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
        return done


@pytest.fixture(scope="session")
def shell() -> Shell:
    return Shell()


class Corpus(NamedTuple):
    text: Path  # folder of train, valid, test .de .en
    binary: Path  # what fairseq-preprocess made of it


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, shell: Shell) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    for split, size in (("train", 300), ("valid", 24), ("test", 24)):
        pairs = [pair(draw) for _ in range(size)]
        if split == "test":
            pairs[5] = ("", "")
        write_pairs(folder / split, pairs)
    shell(
        *("fairseq-preprocess", "-s", "de", "-t", "en", "--joined-dictionary"),
        *("--trainpref", folder / "train", "--validpref", folder / "valid"),
        *("--testpref", folder / "test", "--destdir", folder / "bin"),
    )
    return Corpus(folder, folder / "bin")


PLUGIN = ("--user-dir", "translation", "--task", "coe_translation")
TRAIN = (
    *("--optimizer", "adam", "--lr", "5e-3", "--lr-scheduler", "inverse_sqrt"),
    *("--warmup-updates", "10", "--max-tokens", "600", "--seed", "1", "--cpu"),
    *("--no-progress-bar", "--log-format", "simple", "--share-all-embeddings"),
)
TEAM = (
    *("--arch", "coe_transformer_tiny", "--num-experts", "2"),
    *("--criterion", "coe_label_smoothed_cross_entropy", "--label-smoothing", "0.1"),
)


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus, shell: Shell) -> Path:
    """Folder of the checkpoints of a small trained team; ``log`` in it is what training said."""
    folder = tmp_path_factory.mktemp("team")
    done = shell(
        *("fairseq-train", corpus.binary, *PLUGIN, *TRAIN, *TEAM),
        *("--expert-decoder-layers", "2,1", "--max-update", "60", "--save-dir", folder),
    )
    (folder / "log").write_text(done.stdout + done.stderr)
    return folder


def lines(output: str, *kinds: str) -> list[str]:
    """The lines S-0, H-0, ... of a generation."""
    return [line for line in output.splitlines() if line[:2] in {f"{kind}-" for kind in kinds}]


def table(output: str, kind: str) -> dict[int, list[str]]:
    """Fields of the lines of one kind, by sentence."""
    rows = (line.split("\t") for line in lines(output, kind))
    return {int(row[0].removeprefix(f"{kind}-")): row[1:] for row in rows}


@pytest.fixture(scope="session")
def generate(corpus: Corpus, team: Path, shell: Shell) -> Callable[..., str]:
    """fairseq-generate on the test set; returns what it prints."""

    def call(*options: object, path: object = team / "checkpoint_last.pt", **how) -> str:
        done = shell(
            *("fairseq-generate", corpus.binary, *PLUGIN, "--path", path, "--cpu"),
            *("--beam", "3", *options),
            **how,
        )
        return done.stdout + (done.stderr if how.get("fails") else "")

    return call
