"""Translation: decoding beside its parts, translate beside fairseq-generate, a step beside separate ones.

    python benchmarks/translation_speed.py RUN [--only decoding generating training memory] [--out FOLDER]

RUN is a trained run of one direction, such as that of `coe-translation train demo`. One thread; processor
seconds, all systems in turns, medians of the ratios turn by turn.

decoding: the export's runner beside CTranslate2 translating the same sentences by the same networks, the
delegator all of them and every expert its group. generating: whole commands, start and loading included.
training: updates of the team and of every control beside those of as many plain transformers as there are
networks; a difference of two trainings of different length, so that what they start with drops out. memory:
the team's updates with freed memory kept, and as glibc does it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

from measure import CLOCKS, in_turns, median_ratio, save

from coe_core.support.memory import keep_freed_memory
from coe_core.support.reports import markdown_table
from translation.commands.cli import main as command
from translation.export.runner import Runner
from translation.recipe import TEAM
from translation.run import Run, load_run
from translation.training import calls
from translation.training.programs import Program, run_all, warm

LINES = 600  # that whole commands translate
UPDATES = (5, 25)  # of the trainings whose difference is taken
PARTS = ("decoding", "generating", "training", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--at", help="operating point (default: the run's)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/translation_speed"))
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    measured = {
        "decoding": lambda folder: decoding(run, arguments.at, arguments.rounds, folder),
        "generating": lambda folder: generating(run, arguments.at, arguments.rounds, folder),
        "training": lambda folder: training(run, arguments.rounds, folder),
        "memory": lambda folder: memory(run, arguments.rounds, folder),
    }
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            rows = measured[name](Path(folder))
        save(name, rows, arguments.out, ["fairseq-fixed", "ctranslate2"], rounds=arguments.rounds)
        cells = [[shown(value) for value in row.values()] for row in rows]
        print(markdown_table(list(rows[0]), cells), flush=True)


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def decoding(run: Run, at: str | None, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """The runner beside its parts, with the export's exits and without any."""
    said = io.StringIO()
    words = ["export", str(run.folder), "--system", "CoE", "--out", str(folder / "export")]
    with contextlib.redirect_stdout(said):
        assert command([*words, "--check", "0", *(["--at", at] if at else [])]) == 0
    runner = Runner(folder / "export", threads=1)
    lines = text_of(run, run.recipe.texts.tests[0])
    sentences = runner.cut(lines)
    rows: list[dict[str, Any]] = []
    for threshold in (runner.limit(), float("inf")):
        answers = runner.decode(sentences, threshold=threshold)
        staying = [s for s, a in zip(sentences, answers, strict=True) if a.network != "delegator"]
        translated = [a.texts[0] for a in answers]
        groups = [
            [s for s, a in zip(sentences, answers, strict=True) if a.network == f"expert-{j}"]
            for j in range(len(runner.experts))
        ]
        parts = list(zip(runner.experts, groups, strict=True))
        if threshold <= 1:
            parts.insert(0, (runner.delegator, sentences))
        chosen = (
            [] if threshold <= 1 else sentences
        )  # by the delegator's encoder, which is a part then
        pieces = runner.cut(translated)
        times = in_turns(
            {
                "sum of the parts": lambda parts=parts, chosen=chosen: (
                    [plainly(runner, *part) for part in parts],
                    runner.select(chosen),
                ),
                "routed": lambda t=threshold: runner.decode(sentences, threshold=t),
                "selecting, by the encoder": lambda s=staying: runner.select(s),
                "scoring in a pass of its own, until now": lambda p=pieces: runner.confidence(
                    sentences, p
                ),
            },
            rounds=3 * rounds,
            clock=CLOCKS["process"],
        )
        exits = 1 - len(staying) / len(sentences)
        rows += [
            {
                "exits": f"{100 * exits:.0f}%",
                "what": name,
                "ms a sentence": 1000 * median(seconds) / len(sentences),
                "times the parts": median_ratio(seconds, times["sum of the parts"]),
            }
            for name, seconds in times.items()
        ]
    return rows


def plainly(runner: Runner, network: Any, sentences: Sequence[list[str]]) -> None:
    """As a program without this package calls CTranslate2, from pieces to text."""
    if not sentences:
        return
    search = runner.search()
    answers = network.translate_batch(
        sentences,
        max_batch_size=runner.batch_size,
        beam_size=search["beam"],
        length_penalty=search["lenpen"],
        max_decoding_length=search["max_length"],
        max_input_length=0,
    )
    for answer in answers:
        runner.pieces.decode(answer.hypotheses[0])


def text_of(run: Run, name: str) -> list[str]:
    path = run.text(name, run.recipe.languages.sides[0])
    return path.read_text(encoding="utf-8").splitlines()


def generating(run: Run, at: str | None, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Whole commands on the first lines of the training text, an expert alone among them."""
    source, target = run.recipe.languages.sides
    lines = text_of(run, run.recipe.texts.train)[:LINES]
    text = folder / "text"
    text.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for side in (source, target):
        with (run.pieces / f"{run.recipe.texts.train}.{side}").open(encoding="utf-8") as pieces:
            (folder / f"pieces.{side}").write_text("".join(next(pieces) for _ in lines))
    words = ["fairseq-preprocess", "-s", source, "-t", target, "--testpref", folder / "pieces"]
    words += ["--srcdict", run.data() / f"dict.{source}.txt", "--joined-dictionary"]
    spent([*words, "--destdir", folder / "data"])
    expert, export = folder / "expert.pt", folder / "export"
    spent([*OURS, "take", run.team, "expert-0", "--out", expert])
    exporting = ["export", run.folder, "--system", "CoE", "--check", 0, "--out", export]
    spent([*OURS, *exporting, *(["--at", at] if at else [])])
    wanted = run.recipe.generation
    search = ["--beam", wanted.beam, "--lenpen", wanted.lenpen, "--max-len-b", wanted.max_len]
    alone = ["fairseq-generate", folder / "data", "--path", expert, *search, "--cpu"]
    alone += ["--num-workers", 0, "--remove-bpe", "sentencepiece", "--max-tokens", 4096]

    def translate(source: Path, *options: object) -> list:
        return [*OURS, "translate", source, text, "--device", "cpu", *options]

    budget = ["--at", at] if at else []
    systems: dict[str, Callable[[], list]] = {
        "fairseq-generate, an expert alone": lambda: alone,
        "translate, no exits": lambda: translate(run.folder, "--threshold", "inf"),
        "translate, the collaboration": lambda: translate(run.folder, "--system", "CoE", *budget),
        "translate, the export": lambda: translate(export),
    }
    times = in_turns(
        {name: lambda words=words: spent(words()) for name, words in systems.items()},
        rounds=rounds,
        warm_up=0,
        clock=of_children,
    )
    first = next(iter(times))
    return [
        {
            "command": name,
            "processor seconds": median(seconds),
            "sentences a second": len(lines) / median(seconds),
            "times the first": median_ratio(seconds, times[first]),
        }
        for name, seconds in times.items()
    ]


OURS = ["-c", "import sys; from translation.commands.cli import main; sys.exit(main())"]


def spent(words: Sequence[object]) -> None:
    """Run a command to its end; its output goes nowhere."""
    program = [sys.executable]
    if str(words[0]).startswith("fairseq"):
        program.append(str(Path(sys.executable).with_name(str(words[0]))))
        words = words[1:]
    done = subprocess.run([*program, *map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{words}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Trainings:
    """Trainings of a run's networks, as its launcher starts them, for some updates."""

    def __init__(self, run: Run, folder: Path):
        warm(trains=True)
        self.folder, self.count = folder, 0
        recipe = run.recipe
        plain = {f"expert-{j}": net for j, net in enumerate(recipe.expert_networks)}
        plain["delegator"] = recipe.delegator
        self.calls = {TEAM: calls.train_team(run)}
        self.calls |= {
            name: calls.train_plain(run, name, network)
            for name, network in (plain | dict(recipe.trained())).items()
        }
        self.parts, self.controls = list(plain), [name for name, _ in recipe.trained()]

    def __call__(self, name: str, updates: int, *more: str) -> None:
        self.count += 1
        replaced = {
            **{"--max-update": updates, "--total-num-update": updates, "--warmup-updates": 1},
            "--save-dir": self.folder / str(self.count),
            "--save-interval-updates": 10**9,
            "--validate-interval-updates": 10**9,
        }
        words = list(self.calls[name])
        for option, value in replaced.items():
            if option in words:
                words[words.index(option) + 1] = str(value)
        words += ["--no-save", "--disable-validation", *more]
        run_all([lambda: Program(words, self.folder / f"{name}.log", threads=1)])


def training(run: Run, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Milliseconds of an update: the team, with a shared start and without, and plain networks."""
    train = Trainings(run, folder)
    keep_freed_memory()  # as the command does
    equal = set(map(str, run.recipe.expert_networks))
    experts = train.parts[:-1] if len(equal) > 1 else train.parts[:1]
    systems: dict[str, tuple[str, ...]] = {
        "team": (TEAM,),
        "team, no shared start": (TEAM, "--shared-start", "0"),
        **{name: (name,) for name in [*experts, "delegator", *train.controls]},
    }
    runs = {
        (name, updates): lambda words=words, n=updates: train(words[0], n, *words[1:])
        for name, words in systems.items()
        for updates in UPDATES
    }
    keyed = {f"{name}|{updates}": call for (name, updates), call in runs.items()}
    times = in_turns(keyed, rounds=rounds, warm_up=0, clock=of_children)
    short, long = UPDATES
    each = {
        name: [
            (b - a) / (long - short)
            for a, b in zip(times[f"{name}|{short}"], times[f"{name}|{long}"], strict=True)
        ]
        for name in systems
    }
    copies = len(train.parts) - 1 if len(experts) == 1 else 1
    separate = [
        sum(copies * each[name][turn] for name in experts)
        + sum(each[name][turn] for name in ("delegator", *train.controls))
        for turn in range(rounds)
    ]
    together = {
        f"{name}, with the controls": [
            each[name][turn] + sum(each[control][turn] for control in train.controls)
            for turn in range(rounds)
        ]
        for name in list(systems)[:2]
    }
    each = each | {"separate trainings": separate} | together
    return [
        {
            "training": name,
            "ms an update": 1000 * median(seconds),
            "times separate ones": median_ratio(seconds, separate),
        }
        for name, seconds in each.items()
    ]


def memory(run: Run, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """The team's training with freed memory kept, and without."""
    train = Trainings(run, folder)
    used: dict[str, list[Any]] = {"as glibc does": [], "freed memory kept": []}
    for _ in range(rounds):
        for name in used:
            ends = []
            for updates in UPDATES:
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                apart(train, updates, kept=name != "as glibc does")
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                fields = ("ru_utime", "ru_stime", "ru_minflt")
                ends.append([getattr(after, f) - getattr(before, f) for f in fields])
            short, long = ends
            count = UPDATES[1] - UPDATES[0]
            used[name].append([(b - a) / count for a, b in zip(short, long, strict=True)])
    first = [user + system for user, system, _ in used["as glibc does"]]
    return [
        {
            "memory": name,
            "ms of processor time an update": 1000 * median(u + s for u, s, _ in figures),
            "of it in the kernel": f"{100 * median(s / (u + s) for u, s, _ in figures):.0f}%",
            "minor page faults an update": round(median(faults for *_, faults in figures)),
            "times the first": median_ratio([u + s for u, s, _ in figures], first),
        }
        for name, figures in used.items()
    ]


def apart(train: Trainings, updates: int, kept: bool) -> None:
    """In a copy of this process, as the command keeps its memory before it starts the trainings."""
    if child := os.fork():
        if os.waitpid(child, 0)[1] != 0:
            raise RuntimeError(f"a training failed; see {train.folder}")
        return
    try:
        if kept:
            keep_freed_memory()
        train(TEAM, updates, "--shared-start", "0")
        os._exit(0)
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
