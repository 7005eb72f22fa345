"""What 8 bits cost in accuracy and gain in time: a run's export with experts in int8, beside one in fp32.

    python benchmarks/int8.py RUN [--data FOLDER] [--system NAME] [--images 4000] [--out FOLDER]

Both exports are made as `coe-vision export --to onnx` makes them; int8's ranges are measured on held-out
images. Accuracy is of test images without exits, so that every answer is an expert's, and its difference is
paired; times are onnxruntime's on one thread, both in turns on the same images.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import CLOCKS, in_turns, median_ratio, save

from coe_core.support.reports import markdown_table
from vision.commands.export import INT8_IMAGES
from vision.data.images import ImageSet
from vision.export.export import export_run
from vision.export.runner import Runner
from vision.run import load_run, load_run_data

NO_EXITS = np.inf


def drawn(images: ImageSet, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoded images of a split and their classes, drawn at random: splits may be sorted by class."""
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:most]
    return torch.stack([images[row]["image"] for row in rows.tolist()]), images.targets[rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", help="folder of the data, if not where it lay in training")
    parser.add_argument("--system", default="coe")
    parser.add_argument("--images", type=int, default=4000, help="of test, at most")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--out", type=Path, help="folder for int8.csv")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    run = load_run(chosen.run)
    data = load_run_data(run, chosen.data)
    test, truth = (tensor.numpy() for tensor in drawn(data.test, chosen.images))
    ranges, _ = drawn(data.validation, INT8_IMAGES)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        runners = {}
        for kind, pixels in (("fp32", None), ("int8", ranges)):
            folder = Path(name) / kind
            given = {"threshold": 1.0, "system": chosen.system, "int8_pixels": pixels}
            export_run(run, folder, "onnx", **given)
            runners[kind] = Runner(folder, threads=1, verify=False)
        answers = {
            kind: np.concatenate(
                [
                    runner.infer(test[start : start + 256], NO_EXITS).probabilities.argmax(1)
                    for start in range(0, len(test), 256)
                ]
            )
            for kind, runner in runners.items()
        }
        right = {kind: (found == truth).astype(float) for kind, found in answers.items()}
        difference = right["int8"] - right["fp32"]
        error = difference.std() / len(difference) ** 0.5
        print(
            f"{len(test):,} test images, {chosen.system} without exits: fp32 "
            f"{100 * right['fp32'].mean():.2f}%, int8 {100 * right['int8'].mean():.2f}%, difference "
            f"{100 * difference.mean():+.2f} ± {100 * error:.2f}; same answer for "
            f"{100 * (answers['fp32'] == answers['int8']).mean():.2f}%"
        )
        for batch in chosen.batches:
            calls = {
                kind: partial(runner.infer, test[:batch], NO_EXITS)
                for kind, runner in runners.items()
            }
            times = in_turns(calls, rounds=chosen.rounds, clock=CLOCKS[chosen.clock], warm_up=3)
            ms = {kind: 1e3 * statistics.median(values) for kind, values in times.items()}
            faster = median_ratio(times["fp32"], times["int8"])
            rows.append({"batch": batch, **ms, "times as fast": faster})
    cells = [[str(row["batch"]), *(f"{v:.3g}" for v in list(row.values())[1:])] for row in rows]
    print(markdown_table(["batch", "fp32, ms", "int8, ms", "times as fast"], cells), end="")
    if chosen.out:
        accuracy = {kind: float(values.mean()) for kind, values in right.items()}
        save("int8", rows, chosen.out, ["onnxruntime"], accuracy=accuracy)


if __name__ == "__main__":
    main()
