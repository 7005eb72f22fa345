"""Peak memory of training, export, predict and the server, and whether any of them grows.

    python benchmarks/memory.py [--files 20000] [--requests 3000] [--only PART ...] [--out FOLDER]

Everything is run as a user runs it, each command in a process of its own, on handwritten digits: nothing is
downloaded. Peaks are the kernel's, of the largest process. What could grow is run twice, with more epochs or
more files; the server's memory is read while it answers, and a line is fitted to what it holds after a third
of the requests. A day's growth is that slope at the rate it answered at.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from measure import save
from PIL import Image

from coe_core.support.reports import markdown_table

MIB, DAY = 2**20, 24 * 3600
PARTS = ("training", "export", "predict", "server")
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
        out = folder / "run" if not settings else folder / what.replace(" ", "_")
        rows.append({"what": f"train: {what}", "peak MiB": peak(*TRAIN, *settings, "--out", out)})
    return rows


def export(folder: Path, _: argparse.Namespace) -> list[dict[str, Any]]:
    words = ("export", folder / "run", "--to", "onnx", "--system", "coe", "--out", folder / "onnx")
    return [{"what": "export --to onnx", "peak MiB": peak(*words)}]


def predict(folder: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """A quarter of the files, and all."""
    rows = []
    for count in (chosen.files // 4, chosen.files):
        many = folder / f"files-{count}"
        many.mkdir()
        first = digit(folder / "digit.png", 0)
        for number in range(count):
            os.link(first, many / f"{number}.png")
        words = ("predict", folder / "run", many, "--out", folder / f"{count}.jsonl")
        rows.append({"what": f"predict, {count:,} files", "peak MiB": peak(*words)})
    return rows


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
    parser.add_argument("--run", type=Path, help="of digits, for the parts that do not train")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="folder for memory.csv and memory.json")
    chosen = parser.parse_args()
    parts: dict[str, Callable[[Path, argparse.Namespace], list[dict[str, Any]]]] = {
        "training": training,
        "export": export,
        "predict": predict,
        "server": server,
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if chosen.run:
            (folder / "run").symlink_to(chosen.run.resolve(), target_is_directory=True)
        elif "training" not in chosen.only:
            peak(*TRAIN, "--out", folder / "run")
        for part in chosen.only:
            for row in parts[part](folder, chosen):
                rows.append({"bytes a request": None, "MiB a day": None} | row)
                print({k: v for k, v in row.items() if v is not None}, flush=True)
    headings = ["what", "peak MiB", "bytes a request", "MiB a day"]
    cells = [
        [
            v if isinstance(v, str) else "" if v is None else f"{v:,.0f}"
            for v in map(row.get, headings)
        ]
        for row in rows
    ]
    print(markdown_table(headings, cells), end="")
    if chosen.out:
        save("memory", [{k: row[k] for k in headings} for row in rows], chosen.out)


if __name__ == "__main__":
    main()
