"""Peak memory of training, export, predict and the server, and whether any of them grows.

    python benchmarks/memory.py [--files 20000] [--requests 3000] [--epochs 40] [--only PART ...]

Everything is run as a user runs it, each command in a process of its own, on handwritten digits: nothing is
downloaded. Peaks are the kernel's, of the largest process. What could grow is read while it runs: training by
the epoch, predict by the file, the server by the request. A line is fitted to what each holds after a third
of it; a day's growth is that slope at the rate it went at. workers: what several processes hold together
(PSS, where a page that n of them share counts a n-th in each) with own weights, and with mapped ones.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from measure import save
from PIL import Image

from coe_core.support.reports import markdown_table
from vision.recipe import load_recipe
from vision.training.module import CoETraining

MIB, DAY = 2**20, 24 * 3600
PARTS = ("training", "export", "predict", "server", "workers")
TRAIN = ["train", "digits", "train.epochs=1"]


def vision(*words: object) -> list[str]:
    return [sys.executable, "-m", "vision", *map(str, words)]


def peak(*words: object) -> float:
    """MiB that a command held at most."""
    with subprocess.Popen(
        vision(*words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: {said}")
    return used.ru_maxrss / 1024


def training(folder: Path, _: argparse.Namespace) -> list[dict[str, Any]]:
    """The demo's team and controls; more epochs; no controls; one expert."""
    rows = []
    for what, settings in {
        "4 experts, controls, 1 epoch": [],
        "4 experts, controls, 6 epochs": ["train.epochs=6"],
        "4 experts, no controls, 1 epoch": ["controls={}"],
        "1 expert, no controls, 1 epoch": ["controls={}", "num_experts=1"],
    }.items():
        own = settings or (folder / "run").exists()  # else the run of the parts that do not train
        out = folder / what.replace(" ", "_") if own else folder / "run"
        rows.append({"what": f"train: {what}", "peak MiB": peak(*TRAIN, *settings, "--out", out)})
    return rows


def export(folder: Path, _: argparse.Namespace) -> list[dict[str, Any]]:
    words = ("export", folder / "run", "--to", "onnx", "--system", "coe", "--out", folder / "onnx")
    return [{"what": "export --to onnx", "peak MiB": peak(*words)}]


def predict(folder: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """All files; what is done is counted by the lines of the results."""
    many, out = folder / "files", folder / "results.jsonl"
    many.mkdir()
    first = digit(folder / "digit.png", 0)
    for number in range(chosen.files):
        os.link(first, many / f"{number}.png")
    words = ("predict", folder / "run", many, "--system", "coe", "--out", out)

    def done() -> int:
        for path in (out, *folder.glob("*results*")):  # while it runs, under a name of its own
            if path.is_file():
                return path.stat().st_size
        return 0

    return [watched(f"predict, {chosen.files:,} files", words, done, chosen.files, "file")]


def long_training(folder: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Many short epochs of the demo's team."""
    out, short = folder / "long", ("data.train_fraction=0.2", "controls={}")
    words = ("train", "digits", f"train.epochs={chosen.epochs}", *short, "--out", out)

    def done() -> int:
        return sum(path.read_text().count("\n") for path in out.glob("metrics/*.csv"))

    return [watched(f"train, {chosen.epochs} epochs", words, done, chosen.epochs, "epoch")]


def watched(
    what: str, words: Sequence[object], done: Callable[[], int], count: int, unit: str
) -> dict[str, Any]:
    """A command's peak, and the slope of what it holds over how much it has done.

    Args:
        what: for the table.
        words: of the command.
        done: a number that grows with the work.
        count: units of work, all together.
        unit: what they are.
    """
    held: list[tuple[float, int, int]] = []
    with subprocess.Popen(vision(*words), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with suppress(OSError, SystemExit):  # it may end at any time
                held.append((time.monotonic(), done(), resident(process.pid)))
                highest = resident(process.pid, "VmHWM")
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} failed")
    places = np.array([row for row in held if row[1] > 0], dtype=float)
    places[:, 1] *= count / places[-1, 1]  # lines or bytes -> units
    # What is done after the last, such as fitting points, is no growth.
    places = places[places[:, 1] < count]
    settled = places[places[:, 1] >= count / 3]
    late = places[places[:, 1] >= 2 * count / 3]
    slope, late_slope = (float(np.polyfit(p[:, 1], p[:, 2], 1)[0]) for p in (settled, late))
    seconds = settled[-1, 0] - settled[0, 0]
    rate = (settled[-1, 1] - settled[0, 1]) / seconds
    return {
        "what": what,
        "peak MiB": highest / MIB,
        f"bytes a {unit}": slope,
        f"bytes a {unit}, last third": late_slope,
        "MiB a day": slope * rate * DAY / MIB,
        "seconds watched": seconds,
    }


def workers(folder: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Processes that hold a team of wide networks and have answered once."""
    path = folder / "wide.ckpt"
    wide = "{name: small_resnet, options: {width: %d}}"
    settings = [f"experts={wide % 64}", f"delegator={wide % 16}", "controls={}"]
    recipe = load_recipe("digits", settings)
    names = [str(number) for number in range(10)]
    module = CoETraining(recipe.to_dict(), names, recipe.data.preprocess().to_dict(), 9)
    state = module.state_dict()
    momentum = {name: value.clone() for name, value in state.items()}  # as an optimiser's
    content = {"hyper_parameters": dict(module.hparams), "state_dict": state}
    torch.save({**content, "optimizer_states": [momentum]}, path)
    size = sum(value.numel() * value.element_size() for value in state.values()) / MIB
    rows = []
    for mapped in (False, True):
        for count in chosen.workers:
            with ExitStack() as stack:
                started = [
                    stack.enter_context(
                        subprocess.Popen(
                            [sys.executable, "-c", WORKER, path, str(int(mapped))],
                            stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE,
                            text=True,
                        )
                    )
                    for _ in range(count)
                ]
                for process in started:
                    assert process.stdout is not None
                    process.stdout.readline()
                pss = [rolled_up(process.pid, "Pss") for process in started]
                highest = max(resident(process.pid, "VmHWM") for process in started)
                for process in started:
                    process.communicate("\n")
            kind = "mapped" if mapped else "own"
            what = f"{count} workers, {size:.0f} MiB of weights, {kind}"
            rows.append({"what": what, "peak MiB": highest / MIB, "PSS MiB, all": sum(pss) / MIB})
    return rows


WORKER = """
import sys, torch
torch.set_num_threads(1)
from vision.prediction.predictor import Predictor
from vision.run import load_run
predictor = Predictor(load_run(sys.argv[1], mapped=bool(int(sys.argv[2]))), system="coe")
shape = predictor.networks.preprocess.shape
predictor(list(torch.zeros(8, *shape[1:], dtype=torch.uint8).numpy()), threshold=2.0)
print("ready", flush=True)
sys.stdin.readline()
"""


def rolled_up(pid: int, field: str) -> int:
    """Bytes of a field of the kernel's sums over a process's memory, such as Pss."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"the kernel says no {field} of process {pid}")


def server(folder: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Requests one after another; memory at a hundred places."""
    images = [digit(folder / f"asked-{seed}.png", seed).read_bytes() for seed in range(10)]
    held, every = [], max(1, chosen.requests // 100)
    with (
        serving(folder / "run") as (address, pid),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        begin = time.monotonic()
        for number in range(chosen.requests):
            image = images[number % len(images)]
            client.post("/predict", content=image).raise_for_status()
            if number % every == 0:
                held.append((number, resident(pid)))
        rate = chosen.requests / (time.monotonic() - begin)
        highest = resident(pid, "VmHWM")
    settled = np.array(held[len(held) // 3 :])
    slope = float(np.polyfit(settled[:, 0], settled[:, 1], 1)[0])  # bytes a request
    return [
        {
            "what": f"serve, {chosen.requests:,} requests",
            "peak MiB": highest / MIB,
            "bytes a request": slope,
            "MiB a day": slope * rate * DAY / MIB,
            "seconds watched": (1 - 1 / 3) * chosen.requests / rate,
        }
    ]


def digit(path: Path, seed: int) -> Path:
    """A picture of the size of the digits."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def resident(pid: int, field: str = "VmRSS") -> int:
    """Bytes of memory that a process holds now (VmRSS) or held at most (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"the kernel says no {field} of process {pid}")


@contextmanager
def serving(run: Path) -> Iterator[tuple[str, int]]:
    """`coe-vision serve` on a free port: its address and its process."""
    words = vision("serve", run, "--port", "0", "--system", "coe")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "http://" in line:
                    address = "http://" + line.split("http://")[1].split()[0].rstrip("/")
                    yield address, process.pid
                    break
            else:
                raise SystemExit("the server did not start")
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--requests", type=int, default=3_000)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--run", type=Path, help="of digits, for the parts that do not train")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="folder for memory.csv and memory.json")
    chosen = parser.parse_args()
    parts: dict[str, Callable[[Path, argparse.Namespace], list[dict[str, Any]]]] = {
        "training": lambda *given: [*training(*given), *long_training(*given)],
        "export": export,
        "predict": predict,
        "server": server,
        "workers": workers,
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if chosen.run:
            (folder / "run").symlink_to(chosen.run.resolve(), target_is_directory=True)
        elif {"export", "predict", "server"} & set(chosen.only) and "training" not in chosen.only:
            peak(*TRAIN, "--out", folder / "run")
        for part in chosen.only:
            for row in parts[part](folder, chosen):
                rows.append(row)
                print({k: v for k, v in row.items() if v is not None}, flush=True)
    headings = list(dict.fromkeys(name for row in rows for name in row))
    cells = [
        [
            v if isinstance(v, str) else "" if v is None else f"{v:,.0f}"
            for v in map(row.get, headings)
        ]
        for row in rows
    ]
    print(markdown_table(headings, cells), end="")
    if chosen.out:
        save("memory", [{k: row.get(k) for k in headings} for row in rows], chosen.out)


if __name__ == "__main__":
    main()
