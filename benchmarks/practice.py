"""Images a second from file to answer: predict, the ONNX runner and the server beside a plain loop.

    python benchmarks/practice.py RUN FOLDER [--at AIM] [--single NAME] [--rounds N] [--files N]
        [--enlarge SIDE] [--predict-only] [--processor-time] [--out FOLDER]

The plain loop is what a program with timm does: torch's DataLoader with a worker for each processor decodes
and resizes with torchvision, and the single network of the run whose multiply-adds are nearest to the
collaboration's mean ones answers. All systems answer the same files, in turns; a round is the whole folder.
`predict` computes as the command does: through onnxruntime where that is faster. `--enlarge SIDE` writes the
photographs anew with that shorter side, as a camera's files are larger than what networks see.
The server runs in a process of its own and is asked by 32 threads, a file a request, each over a connection
that it keeps; "HTTP alone" is the same of a server whose handler does nothing (empty_server.py).
`--processor-time` counts what all processes of a system compute, their children's included, not the time on
the wall: that is what is left to compare where other work takes the processors.
Peak memory is that of `coe-vision predict` in a process of its own, of the folder and of it ten times over.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode, urlsplit

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from measure import in_turns, median_ratio, save
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from coe_core.support.reports import markdown_table
from coe_core.threads import allowed_processors
from vision.budgets import ResolvedBudget
from vision.export.accelerate import accelerate
from vision.prediction.files import predict_files
from vision.prediction.inputs import find_inputs
from vision.prediction.predictor import Predictor
from vision.serve.start import serving_threads

BATCH = 64
PLAIN = "plain loop"
EMPTY = Path(__file__).with_name("empty_server.py")


class Files(Dataset):
    """Image files as timm's and torchvision's examples read them."""

    def __init__(self, paths: list[Path], transform: Callable, mode: str):
        self.paths, self.transform, self.mode = paths, transform, mode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]).convert(self.mode))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("folder")
    parser.add_argument("--at", help="operating point of the collaboration")
    parser.add_argument("--single", help="control that answers alone")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/practice"))
    parser.add_argument("--predict-only", action="store_true", help="no runner, server or memory")
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--files", type=int, help="so many files of the folder, evenly drawn")
    parser.add_argument("--enlarge", type=int, metavar="SIDE", help="shorter side in pixels")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.files or arguments.enlarge:
            write_files(Path(arguments.folder), Path(folder), arguments.files, arguments.enlarge)
            arguments.folder = folder
        measure(arguments)


def write_files(folder: Path, to: Path, count: int | None, side: int | None) -> None:
    """Some files of a folder, as they are or as larger JPEGs."""
    paths = [Path(one.content()) for one in find_inputs([str(folder)])]
    for path in paths[:: max(1, len(paths) // (count or len(paths)))][:count]:
        if side is None:
            shutil.copy(path, to)
            continue
        with Image.open(path) as image:
            larger = side / min(image.size)
            sides = (round(image.width * larger), round(image.height * larger))
            image.convert("RGB").resize(sides, Image.Resampling.LANCZOS).save(
                to / f"{path.stem}.jpg", quality=90
            )


def measure(arguments: argparse.Namespace) -> None:
    """All systems in turns, and the table."""
    paths = [one.content() for one in find_inputs([arguments.folder])]
    team = Predictor(arguments.run, system="coe", batch_size=BATCH)
    single = arguments.single or nearest_single(team, arguments.at)
    alone = Predictor(arguments.run, system=f"single:{single}", batch_size=BATCH)
    for predictor in (alone, team):
        torch.set_num_threads(serving_threads(predictor, BATCH).count)
        chosen = accelerate(predictor, [predictor.named_system], batch_size=BATCH)
        print(f"{predictor.named_system}: {chosen}", flush=True)
    whole = ResolvedBudget("whole", 2.0, 0.0, None, None, system=f"single:{single}")
    plain = Predictor(arguments.run, system=f"single:{single}", batch_size=BATCH)
    calls: dict[str, Callable[[], object]] = {
        PLAIN: plain_loop(plain, paths),
        f"predict, {single}": lambda: drain(predict_files(alone, named(paths), whole)),
        "predict, CoE": lambda: drain(
            predict_files(team, named(paths), team.resolve(arguments.at))
        ),
    }
    with ExitStack() as stack:
        if not arguments.predict_only:
            options = ["--system", "coe", *(["--at", arguments.at] if arguments.at else [])]
            command = [sys.executable, "-m", "vision", "serve", arguments.run, "--port", "0"]
            address = stack.enter_context(serving([*command, *options]))
            nothing = stack.enter_context(serving([sys.executable, str(EMPTY)]))
            temporary = stack.enter_context(tempfile.TemporaryDirectory())
            runner = onnx_runner(arguments.run, arguments.at, Path(temporary), paths)
            calls["ONNX runner, CoE"] = runner
            calls["server, CoE"] = asked(address, arguments.at, paths)
            calls["HTTP alone"] = asked(nothing, None, paths)
        clock = processor_seconds if arguments.processor_time else time.perf_counter
        times = in_turns(calls, rounds=arguments.rounds, clock=clock)
    macs = {PLAIN: alone.systems[f"single:{single}"].first_macs}
    rows: list[dict[str, Any]] = []
    for name, seconds in times.items():
        spent = mean_macs(team, arguments.at, paths) if name.endswith("CoE") else macs[PLAIN]
        spent = 0.0 if name == "HTTP alone" else spent
        rows.append(
            {
                "system": name,
                "mmacs": spent / 1e6,
                "images_per_s": len(paths) / median(seconds),
                "times_the_plain_loop": median_ratio(times[PLAIN], seconds),
            }
        )
    memory = [
        peak_memory(arguments.run, arguments.at, arguments.folder, count)
        for count in (() if arguments.predict_only or arguments.processor_time else (1, 10))
    ]
    save(
        "practice", rows, arguments.out, ["timm", "onnxruntime"], files=len(paths), peak_mib=memory
    )
    cells = [[row["system"], *(f"{value:.3g}" for value in list(row.values())[1:])] for row in rows]
    print(markdown_table(list(rows[0]), cells))
    for count, peak in zip((1, 10), memory, strict=False):
        print(f"peak memory of predict, {count} times the files: {peak:.0f} MiB")


def nearest_single(team: Predictor, at: str | None) -> str:
    """The control whose multiply-adds are nearest to the collaboration's mean ones."""
    wanted = team.resolve(at)
    exits = wanted.exit_rate or 0.0
    system = team.systems[wanted.system]
    spent = system.first_macs + (1 - exits) * sum(system.expert_macs) / len(system.expert_macs)
    controls = team.macs.controls
    return min(controls, key=lambda name: abs(controls[name] - spent))


def mean_macs(team: Predictor, at: str | None, paths: list[Path]) -> float:
    """What the collaboration spends on these files."""
    return sum(answer.macs for answer in team(paths, budget=at)) / len(paths)


def named(paths: list[Path]) -> list[Any]:
    return find_inputs([str(path) for path in paths])


def drain(answers: Iterator) -> None:
    for _ in answers:
        pass


def plain_loop(alone: Predictor, paths: list[Path]) -> Callable[[], None]:
    """torch's DataLoader, torchvision's transforms, one network."""
    preprocess, network = alone.networks.preprocess, next(iter(alone.systems.values())).networks[0]
    size = preprocess.size
    resize = [v2.Resize((size, size), v2.InterpolationMode.BICUBIC)]
    if preprocess.resize == "crop":
        resize = [
            v2.Resize(preprocess.shorter_side, v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(size),
        ]
    transform = v2.Compose(
        [
            *resize,
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preprocess.mean, preprocess.std),
        ]
    )
    loader = DataLoader(
        Files(paths, transform, "L" if preprocess.channels == 1 else "RGB"),
        BATCH,
        num_workers=max(1, int(allowed_processors())),
        persistent_workers=True,
    )

    @torch.inference_mode()
    def run() -> None:
        for images in loader:
            network(images).softmax(1).max(1)

    return run


def onnx_runner(run: str, at: str | None, folder: Path, paths: list[Path]) -> Callable[[], object]:
    """The export's own runner, by its path as a user would load it."""
    export = folder / "export"
    command = [sys.executable, "-m", "vision", "export", run, "--to", "onnx", "--system", "coe"]
    subprocess.run([*command, "--out", str(export), *(["--at", at] if at else [])], check=True)
    spec = importlib.util.spec_from_file_location("exported_runner", export / "runner.py")
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    runner = module.Runner(export)
    return lambda: runner(paths)


@contextmanager
def serving(command: list[str]) -> Iterator[str]:
    """A server that says where it listens, as the command starts it."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield next(line for line in process.stdout if " at http" in line).split(" at ")[1].strip()
    finally:
        process.terminate()
        process.wait()


def asked(address: str, at: str | None, paths: list[Path]) -> Callable[[], object]:
    """A file a request, from as many threads as batches need to fill; http.client, as it takes least."""
    place = urlsplit(address).netloc
    target = "/predict" + (f"?{urlencode({'budget': at})}" if at else "")
    own = threading.local()

    def answer(content: bytes) -> http.client.HTTPResponse:
        own.connection.request("POST", target, content)
        return own.connection.getresponse()

    def ask(path: Path) -> None:
        content = path.read_bytes()
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection(place, timeout=60)
        try:
            response = answer(content)
        except ConnectionError:  # closed between two rounds
            own.connection.close()
            response = answer(content)
        said = response.read()
        assert response.status == 200, said

    threads = ThreadPoolExecutor(32)
    return lambda: list(threads.map(ask, paths))


def processor_seconds() -> float:
    """What this process and all that it started have computed, in seconds (Linux)."""
    parents, ticks = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
            ticks[int(folder.name)] = int(fields[11]) + int(fields[12])
    ours = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(ticks[process] for process in ours) / os.sysconf("SC_CLK_TCK")


def peak_memory(run: str, at: str | None, folder: str, times: int) -> float:
    """Largest resident memory of `coe-vision predict`, in MiB, of a folder so many times over."""
    with tempfile.TemporaryDirectory() as temporary:
        files = Path(temporary) / "files"
        for copy in range(times):
            shutil.copytree(folder, files / str(copy))
        out = Path(temporary) / "out.jsonl"
        command = [sys.executable, "-m", "vision", "predict", run, str(files), "--out", str(out)]
        command += ["--at", at] if at else []
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, _, usage = os.wait4(process.pid, 0)
        return usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
