"""How soon a command starts: processor seconds of each, and their ratio to `import torch` in the same run.

    python benchmarks/startup.py [--run RUN] [--translation RUN] [--rounds 5] [--out FOLDER]

Every command runs in a process of its own, all in turns, `import torch` among them. RUN is a trained run of
digits; without it one is trained for an epoch, which is not measured. With a run of `coe-translation train
demo` its commands are measured, too. What a command loads is counted by
tests/vision/commands/test_startup.py and its twin; this is what it costs.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measure import median_ratio, save
from PIL import Image

from coe_core.support.reports import print_table, rich_table

VISION, TRANSLATION = "vision.commands.cli", "translation.commands.cli"
TRAINING = """
from coe_core.support.imports import uncollected
with uncollected():
    import vision.training.train
"""  # as the command does
# Of what is named; the bar is a ratio to `import torch`.
BARS = {"none": 0.1, "light": 1.8, "heavy": 2.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a trained run of digits")
    parser.add_argument("--translation", type=Path, help="a trained run of demo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="parts of the names of commands to be measured")
    parser.add_argument("--out", type=Path, help="folder for startup.csv and startup.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = (arguments.run or trained(folder / "run")).resolve()
        known = commands(run, folder)
        if arguments.translation is not None:
            known |= of_translation(arguments.translation.resolve(), folder)
        calls = {
            label: call
            for label, call in known.items()
            if label == "import torch" or any(part in label for part in arguments.only or [""])
        }
        seconds = measured(calls, arguments.rounds, folder)
    rows = []
    for label, (kind, times) in seconds.items():
        ratio = median_ratio(times, seconds["import torch"][1])
        bar = BARS.get(kind)
        rows.append(
            {
                "command": label,
                "processor seconds": statistics.median(times),
                "times import torch": ratio,
                "at most": bar,
                "met": "" if bar is None else "yes" if ratio <= bar else "NO",
            }
        )
    cells = [
        [
            row["command"],
            f"{row['processor seconds']:.2f}",
            f"{row['times import torch']:.2f}",
            "" if row["at most"] is None else f"{row['at most']:g}",
            row["met"],
        ]
        for row in rows
    ]
    print_table(rich_table(list(rows[0]), cells))
    if arguments.out is not None:
        save("startup", rows, arguments.out, rounds=arguments.rounds)


def code(module: str, *words: object) -> str:
    return (
        f"import sys; from {module} import main; sys.exit(main({[str(word) for word in words]!r}))"
    )


def trained(folder: Path) -> Path:
    words = ("train", "digits", "train.epochs=1", "data.train_fraction=0.2", "train.batch_size=32")
    processor_seconds(code(VISION, *words, "--out", folder), folder.parent)
    return folder


def commands(run: Path, folder: Path) -> dict[str, tuple[str, str]]:
    """Kind of bar, and code, by name."""
    text, picture, model = folder / "text.de", folder / "picture.png", folder / "joint.model"
    text.write_text("".join(f"ein Haus und {number} Häuser\n" for number in range(40)))
    Image.new("L", (8, 8)).save(picture)
    processor_seconds(code(TRANSLATION, "vocabulary", text, "--size", 30, "--out", model), folder)
    quick = ("train.epochs=1", "data.train_fraction=0.2", "train.batch_size=32", "--stop-after", 1)
    return {
        "import torch": ("", "import torch"),
        "coe-vision --help": ("none", code(VISION, "--help")),
        "coe-vision recipes": ("none", code(VISION, "recipes")),
        "coe-vision inspect digits": ("light", code(VISION, "inspect", "digits")),
        "coe-vision predict": ("light", code(VISION, "predict", run, picture)),
        "coe-vision calibrate": ("light", code(VISION, "calibrate", run, "best")),
        "coe-vision evaluate": (
            "heavy",
            code(VISION, "evaluate", run, "--no-time", "--out", folder / "evaluation"),
        ),
        "import of training": ("heavy", TRAINING),
        "import of the server": (
            "heavy",
            "import uvicorn, vision.serve.app, vision.prediction.predictor",
        ),
        "coe-vision train, one epoch": (
            "",
            code(VISION, "train", "digits", *quick, "--out", folder / "run-ROUND"),
        ),
        "coe-translation check": ("none", code(TRANSLATION, "check", text, text)),
        "coe-translation score": ("none", code(TRANSLATION, "score", text, "-r", text)),
        "coe-translation encode": (
            "none",
            code(TRANSLATION, "encode", text, "--model", model, "--out", folder / "pieces"),
        ),
    }


def of_translation(run: Path, folder: Path) -> dict[str, tuple[str, str]]:
    """The commands of translation that need a run; of what is translated there is one line."""
    line, export, valid = folder / "line.de", folder / "export", run / "decoded/valid.json"
    line.write_text("40 Sekunden\n")
    other = folder / "other.de"
    other.write_text("41 Sekunden\n")
    words = ("export", run, "--system", "CoE", "--check", 0, "--out")
    processor_seconds(code(TRANSLATION, *words, export), folder)
    points = folder / "points-run-ROUND.json"
    curve = ("curve", run / "decoded/test.json", "--out", folder / "curve")
    return {
        "coe-translation --help": ("none", code(TRANSLATION, "--help")),
        "coe-translation recipes": ("none", code(TRANSLATION, "recipes")),
        "coe-translation compare": (
            "none",
            code(TRANSLATION, "compare", line, other, "--reference", line),
        ),
        "coe-translation inspect demo": ("heavy", code(TRANSLATION, "inspect", "demo")),
        "coe-translation translate": ("heavy", code(TRANSLATION, "translate", run, line)),
        "coe-translation translate, an export": (
            "light",
            code(TRANSLATION, "translate", export, line),
        ),
        "coe-translation calibrate": (
            "light",
            code(TRANSLATION, "calibrate", valid, "best", "--out", points),
        ),
        "coe-translation curve": ("heavy", code(TRANSLATION, *curve)),
        "coe-translation export": (
            "heavy",
            code(TRANSLATION, *words, folder / "export-run-ROUND"),
        ),
        "import of translation's server": (
            "heavy",
            "import uvicorn, translation.serve.app; "
            "from translation.plugin.loading import load_fairseq; load_fairseq(); "
            "import translation.prediction.fairseq_engine",
        ),
        "import of translation's training": (
            "heavy",
            "from translation.training.programs import warm; warm(trains=True)",
        ),
    }


def measured(
    calls: dict[str, tuple[str, str]], rounds: int, folder: Path
) -> dict[str, tuple[str, list[float]]]:
    """Kind and times of every command, all in turns; the first round only warms the disk."""
    seconds: dict[str, tuple[str, list[float]]] = {
        label: (kind, []) for label, (kind, _) in calls.items()
    }
    for turn in range(rounds + 1):
        for label, (_, source) in calls.items():
            spent = processor_seconds(source.replace("run-ROUND", f"run-{turn}"), folder)
            if turn > 0:
                seconds[label][1].append(spent)
    return seconds


def processor_seconds(source: str, folder: Path) -> float:
    """Processor time of one process and what it starts; its output goes nowhere.

    Raises:
        RuntimeError: it failed.
    """
    before = spent_by_children()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(search_path()),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"{source}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return spent_by_children() - before


def search_path() -> Sequence[str]:
    """This checkout first, whatever is installed."""
    return [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]


def spent_by_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
