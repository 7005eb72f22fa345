"""A small German-English corpus of numbers in words, and fairseq's own commands as users call them."""

import contextlib
import copy
import importlib
import io
import json
import logging
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple, TypeAlias

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MadeOnce: TypeAlias = Callable[[str, Callable[[Path], object]], Path]  # see tests/conftest.py
ONES = [
    *[("null", "zero"), ("eins", "one"), ("zwei", "two"), ("drei", "three"), ("vier", "four")],
    *[("fünf", "five"), ("sechs", "six"), ("sieben", "seven"), ("acht", "eight"), ("neun", "nine")],
]
TENS = [("zwanzig", "twenty"), ("dreißig", "thirty"), ("vierzig", "forty"), ("fünfzig", "fifty")]
UNITS = [("Meter", "metres"), ("Jahre", "years"), ("Euro", "euros"), ("Tage", "days")]


def number(draw: random.Random) -> tuple[str, str]:
    """Below 60: German says the ones first."""
    unit, ten = draw.choice(ONES[1:]), draw.choice(TENS)
    return draw.choice([unit, ten, (f"{unit[0]} und {ten[0]}", f"{ten[1]} {unit[1]}")])


def pair(draw: random.Random) -> tuple[str, str]:
    """One to three numbers with units."""
    parts = []
    for _ in range(draw.randint(1, 3)):
        amount, unit = number(draw), draw.choice(UNITS)
        parts.append((f"{amount[0]} {unit[0]}", f"{amount[1]} {unit[1]}"))
    return " und ".join(part[0] for part in parts), " and ".join(part[1] for part in parts)


def write_pairs(prefix: Path, pairs: list[tuple[str, str]]) -> None:
    for place, language in enumerate(("de", "en")):
        lines = "".join(both[place] + "\n" for both in pairs)
        prefix.with_name(f"{prefix.name}.{language}").write_text(lines, encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def _composed_once() -> Iterator[None]:
    """fairseq's options through hydra as ever, without what hydra does anew for every call: half a second.

    It copies all that was ever registered, though a copy of what is asked for is made, too; parses the same
    defaults; and reads the source of every function on the stack to find the folder of its caller.
    """
    from hydra._internal.config_repository import CachingConfigRepository
    from hydra.core.override_parser.overrides_parser import OverridesParser

    initialize = importlib.import_module("hydra.initialize")
    find, parse = (
        initialize.detect_calling_file_or_module_from_stack_frame,
        OverridesParser.parse_rule,
    )
    callers: dict[CodeType, object] = {}
    parsed: dict[tuple[str, str], object] = {}

    def caller(depth: int) -> object:
        code = sys._getframe(depth).f_code
        if code not in callers:
            callers[code] = find(depth + 1)
        return callers[code]

    def parse_once(parser: OverridesParser, text: str, rule: str) -> object:
        if (text, rule) not in parsed:
            parsed[text, rule] = parse(parser, text, rule)
        return copy.copy(parsed[text, rule])

    def shared(caching: CachingConfigRepository, repository: object) -> None:
        caching.delegate, caching.cache = repository, {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initialize, find.__name__, caller)
        patch.setattr(OverridesParser, "parse_rule", parse_once)
        patch.setattr(CachingConfigRepository, "__init__", shared)
        yield


class Done(NamedTuple):
    out: str  # what was printed
    log: str  # what was logged, and the error, if there was one

    def lines(self, *kinds: str) -> list[str]:
        """The lines S-0, H-0, ... of a generation."""
        return [line for line in self.out.splitlines() if line.partition("-")[0] in kinds]

    def table(self, kind: str) -> dict[int, list[str]]:
        """Fields of the lines of one kind, by sentence."""
        rows = (line.split("\t") for line in self.lines(kind))
        return {int(row[0].removeprefix(f"{kind}-")): row[1:] for row in rows}

    def hypotheses(self) -> dict[int, str]:
        """Best translation of every sentence."""
        return {number: row[1] for number, row in self.table("H").items()}

    def numbers(self, kind: str) -> list[float]:
        """The numbers of the lines of one kind, in the order of the sentences."""
        rows = sorted((line.split("\t") for line in self.lines(kind)), key=lambda row: row[0])
        return [float(word) for row in rows for word in row[1].split()]

    def valid(self) -> dict[str, float]:
        """The last figures of the validation."""
        lines = [text for text in self.log.splitlines() if "valid on 'valid' subset |" in text]
        assert lines, self.log
        line = lines[-1]
        pairs = (figure.split() for figure in line.split(" | ")[1:])
        return {pair[0]: float(pair[1]) for pair in pairs if len(pair) == 2}


class Shell:
    """fairseq's commands by their own entry points, in this process: starting one takes seconds."""

    PLUGIN = ("--user-dir", "translation", "--task", "coe_translation")
    TRAIN = (
        *("--optimizer", "adam", "--lr", "5e-3", "--lr-scheduler", "inverse_sqrt"),
        *("--warmup-updates", "10", "--max-tokens", "600", "--seed", "1", "--cpu"),
        *("--no-progress-bar", "--log-format", "simple", "--share-all-embeddings"),
        *("--num-workers", "0", "--no-epoch-checkpoints"),
    )
    TEAM = (
        *("--arch", "coe_transformer_tiny", "--num-experts", "2"),
        *("--criterion", "coe_label_smoothed_cross_entropy", "--label-smoothing", "0.1"),
    )

    def __call__(
        self, command: str, *options: object, given: str | None = None, fails: bool = False
    ) -> Done:
        import translation
        from translation.training.programs import forget

        translation.register()  # this process may have imported the package before fairseq
        words = ["translation" if word == "translation" else str(word) for word in options]
        module = importlib.import_module(f"fairseq_cli.{command.removeprefix('fairseq-')}")
        out, log = io.StringIO(), io.StringIO()
        handler, root = logging.StreamHandler(log), logging.getLogger()
        kept = sys.argv, sys.stdin, root.level
        sys.argv, sys.stdin = [command, *words], io.StringIO(given or "")
        forget()  # what else this process ran
        figures = logging.getLogger("fairseq.logging.progress_bar")
        root.addHandler(handler)
        figures.addHandler(handler)
        root.setLevel(logging.INFO)  # validate resets it
        error = None
        try:
            with (
                contextlib.redirect_stdout(out),
                contextlib.chdir(ROOT),
                warnings.catch_warnings(action="ignore"),  # of hydra and fairseq
            ):
                module.cli_main()
        except (Exception, SystemExit) as caught:
            error = caught
            log.write(f"{type(error).__name__}: {error}")
        finally:
            sys.argv, sys.stdin, level = kept
            root.setLevel(level)
            root.removeHandler(handler)
            figures.removeHandler(handler)
        if error is not None and not fails:
            raise error
        assert (error is not None) == fails, out.getvalue() + log.getvalue()
        return Done(out.getvalue(), log.getvalue())


def apart(*command: object, fails: bool = False, **how) -> subprocess.CompletedProcess:
    """A command in a process of its own, as users start it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    words = [str(word) for word in command]
    script = Path(sys.executable).with_name(words[0])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, *words[1:]],
        **{"capture_output": True, "text": True, "env": environment, "cwd": ROOT, **how},
    )
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture
def said(capsys) -> Callable[..., tuple[int, str, str]]:
    """Run `coe-translation`; its status and what it said on both streams."""
    from translation.commands.cli import main

    def call(*arguments):
        capsys.readouterr()
        status = main([str(word) for word in arguments])
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


@pytest.fixture(scope="session")
def shell() -> Shell:
    return Shell()


@pytest.fixture(scope="session", name="apart")
def _apart() -> Callable[..., subprocess.CompletedProcess]:
    return apart


class Corpus(NamedTuple):
    text: Path  # folder of train, valid, test .de .en
    binary: Path  # what fairseq-preprocess made of it


@pytest.fixture(scope="session")
def corpus(made_once: MadeOnce, shell: Shell) -> Corpus:
    def make(folder: Path) -> None:
        folder.mkdir()
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

    folder = made_once("corpus", make)
    return Corpus(folder, folder / "bin")


@pytest.fixture(scope="session")
def team(made_once: MadeOnce, corpus: Corpus, shell: Shell) -> Path:
    """Folder of the checkpoints of a small trained team; ``log`` in it is what training said."""

    def make(folder: Path) -> None:
        done = shell(
            *("fairseq-train", corpus.binary, *shell.PLUGIN, *shell.TRAIN, *shell.TEAM),
            *("--expert-decoder-layers", "2,1", "--max-update", "60", "--save-dir", folder),
        )
        (folder / "log").write_text(done.log)

    return made_once("team", make)


@pytest.fixture(scope="session")
def load_team(corpus: Corpus) -> Callable[[Path], tuple[Any, Any]]:
    """A checkpoint's team, to infer with, and its task."""

    def load(path: Path) -> tuple[Any, Any]:
        from fairseq import checkpoint_utils

        import translation

        translation.register()
        models, _, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(path)], arg_overrides={"data": str(corpus.binary)}
        )
        return models[0].eval(), task

    return load


@pytest.fixture(scope="session")
def generate(corpus: Corpus, team: Path, shell: Shell) -> Callable[..., Done]:
    """fairseq-generate on the test set; ``again`` runs what ran before, else its answer is remembered."""
    known: dict[object, Done] = {}

    def call(
        *options: object, path: object = team / "checkpoint_last.pt", again: bool = False, **how
    ) -> Done:
        key = (options, path, *how.items())
        if again or key not in known:
            known[key] = run(*options, path=path, **how)
        return known[key]

    def run(*options: object, path: object, **how) -> Done:
        return shell(
            *(
                "fairseq-generate",
                corpus.binary,
                *shell.PLUGIN,
                "--path",
                path,
                "--cpu",
                "--num-workers",
                "0",
            ),
            *("--beam", "3", *options),
            **how,
        )

    return call


@pytest.fixture(scope="session")
def plain(made_once: MadeOnce, corpus: Corpus, shell: Shell) -> Path:
    """Checkpoint of fairseq's own transformer, trained by fairseq's own task."""

    def make(folder: Path) -> None:
        shell(
            *("fairseq-train", corpus.binary, "--user-dir", "translation", *shell.TRAIN),
            *("--task", "translation", "--arch", "transformer_tiny", "--max-update", "20"),
            *("--criterion", "label_smoothed_cross_entropy", "--save-dir", folder),
        )

    return made_once("plain", make) / "checkpoint_last.pt"


@pytest.fixture(scope="session", name="trained_run")
def _trained_run(made_once: MadeOnce, corpus: Corpus, shell: Shell) -> Path:
    """A small run as `coe-translation train` leaves it: team, controls, thresholds, translations."""
    return made_once("numbers", lambda run: train_run(run, corpus, shell))


def train_run(run: Path, corpus: Corpus, shell: Shell) -> None:
    from translation.commands.cli import main
    from translation.recipe import recipe_from_dict

    texts = [
        corpus.text / f"{name}.{side}"
        for name in ("train", "valid", "test")
        for side in ("de", "en")
    ]
    model = run / "vocabulary" / "joint.model"

    def call(*words: object) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            assert main([str(word) for word in words]) == 0

    call("vocabulary", *texts[:2], "--size", 60, "--out", model)
    call("encode", *texts, "--model", model, "--out", run / "pieces")
    shell(
        *("fairseq-preprocess", "-s", "de", "-t", "en", "--joined-dictionary"),
        *("--trainpref", run / "pieces/train", "--validpref", run / "pieces/valid"),
        *("--testpref", run / "pieces/test", "--destdir", run / "data"),
    )
    shell(
        *("fairseq-train", run / "data", *shell.PLUGIN, *shell.TRAIN, *shell.TEAM),
        *("--max-source-positions", "60", "--max-target-positions", "60"),
        *("--max-update", "60", "--save-dir", run / "training/team"),
    )
    team, networks = run / "networks/team.pt", run / "networks"
    networks.mkdir()
    (run / "training/team/checkpoint_last.pt").rename(team)
    call("take", team, "delegator", "--out", networks / "delegator-alone.pt")
    call("take", team, "expert-1", "--out", networks / "expert-alone.pt")
    call(
        *("decode", run / "data", "--path", team, "--gen-subset", "valid", "--beam", 2),
        *("--remove-bpe", "sentencepiece", "--cpu", "--num-workers", 0, "--max-len-b", 40),
        *("--control", f"delegator-alone={networks / 'delegator-alone.pt'}"),
        *("--control", f"expert-alone={networks / 'expert-alone.pt'}"),
        *("--reference", corpus.text / "valid.en", "--out", run / "decoded/valid.json"),
    )
    call(
        "calibrate",
        run / "decoded/valid.json",
        "best",
        "macs=70%",
        "--out",
        run / "operating_points.json",
    )
    stored = json.loads((run / "operating_points.json").read_text())
    del stored["choices"]  # as an earlier version wrote it: all is the collaboration's
    (run / "operating_points.json").write_text(json.dumps(stored))
    small = {"embed_dim": 32, "ffn_embed_dim": 64, "encoder_layers": 1, "decoder_layers": 1}
    network = {**small, "attention_heads": 2}
    recipe = recipe_from_dict(
        {
            "languages": {"source": ["de"], "target": ["en"]},
            "vocabulary": {"size": 60},
            "delegator": network,
            "experts": {**network, "embed_dim": 64},
            "num_experts": 2,
            "training": {"updates": 60, "max_tokens": 600, "lr": 0.005},
            "controls": {"expert-alone": network, "delegator-alone": network},
            "generation": {"beam": 2, "max_len": 40},
            "aims": ["best", "macs=70%"],
        }
    )
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
