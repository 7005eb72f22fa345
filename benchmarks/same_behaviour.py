"""Does a rebuilt program behave as before? Keeps what it produces; compares two such folders.

    python benchmarks/same_behaviour.py keep /tmp/before      # on the old commit (about five minutes)
    python benchmarks/same_behaviour.py keep /tmp/after       # on the new one
    python benchmarks/same_behaviour.py compare /tmp/before /tmp/after

Kept are the weights of `digits` (seed 0, 3 epochs, fp32), its table, the outputs of its ONNX export, and
the checkpoints of the demo translation after 50 updates. They must be equal to the bit, on one machine
with the same packages: what is compared is the program, not the arithmetic of a processor.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
DIGITS = ["train", "digits", "seed=0", "train.epochs=3", "train.precision=32-true"]


def run(*command: object) -> None:
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run(list(map(str, command)), check=True, cwd=ROOT, env={**os.environ, **threads})


def keep(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    digits = folder / "digits"
    run(BIN / "coe-vision", *DIGITS, "--out", digits)
    run(BIN / "coe-vision", "evaluate", digits)
    run(BIN / "coe-vision", "export", digits, "--to", "onnx", "--out", folder / "onnx")
    np.savez(folder / "onnx_outputs.npz", **onnx_outputs(folder / "onnx"))
    settings = ("training.updates=50", "texts.pairs=2000", "texts.held_out=60")
    out = folder / "translation"
    run(BIN / "coe-translation", "train", "demo", *settings, "--out", out)


def onnx_outputs(folder: Path) -> dict[str, np.ndarray]:
    """What every exported network answers to the same 64 inputs."""
    import onnxruntime

    outputs = {}
    for path in sorted(folder.glob("*.onnx")):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        numbers = np.random.default_rng(0)
        inputs = {}
        for entry in session.get_inputs():
            shape = [64 if not isinstance(size, int) else size for size in entry.shape]
            kind = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}.get(entry.type)
            if kind is None:
                break
            inputs[entry.name] = (
                numbers.integers(0, 256, shape).astype(kind)
                if kind is np.uint8
                else numbers.random(shape).astype(kind)
            )
        else:
            for entry, value in zip(session.get_outputs(), session.run(None, inputs), strict=True):
                outputs[f"{path.stem}/{entry.name}"] = np.asarray(value)
    if not outputs:
        raise SystemExit(f"no network of {folder} could be run")
    return outputs


def tensors(value: object, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor in nested dictionaries and lists, by its path."""
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    if isinstance(value, dict):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(number), inner) for number, inner in enumerate(value)]
    else:
        return {}
    return {
        path: tensor
        for key, inner in items
        for path, tensor in tensors(inner, f"{prefix}/{key}").items()
    }


def same_tensors(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    missing = sorted(before.keys() ^ after.keys())
    different = [
        path for path in before.keys() & after.keys() if not torch.equal(before[path], after[path])
    ]
    return [f"only in one: {path}" for path in missing] + [f"differs: {path}" for path in different]


def weights(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".ckpt":
        return tensors(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    from translation.plugin.checkpoints import load_state  # reads fairseq's, and runs no code

    return tensors(load_state(path)["model"])


def compare_folders(before: Path, after: Path) -> int:
    checks: dict[str, list[str]] = {}
    for name in ("best", "last"):
        path = Path(f"digits/checkpoints/{name}.ckpt")
        if (before / path).exists():
            checks[str(path)] = same_tensors(weights(before / path), weights(after / path))
    table = Path("digits/evaluation/table.csv")
    same = results(before / table) == results(after / table)
    checks[str(table)] = [] if same else ["the rows differ"]
    old, new = np.load(before / "onnx_outputs.npz"), np.load(after / "onnx_outputs.npz")
    checks["onnx outputs"] = same_tensors(
        {name: torch.from_numpy(old[name]) for name in old.files},
        {name: torch.from_numpy(new[name]) for name in new.files},
    )
    for path in sorted((before / "translation/networks").glob("*.pt")):
        name = path.relative_to(before)
        checks[str(name)] = same_tensors(weights(path), weights(after / name))
    for name, faults in checks.items():
        print(
            f"{'equal' if not faults else 'DIFFERENT':10} {name}",
            *faults[:3],
            sep="\n    " if faults else " ",
        )
    return int(any(checks.values()))


def results(path: Path) -> list[list[str]]:
    """The table without what is measured anew: times."""
    import csv

    rows = list(csv.reader(path.open()))
    kept = [
        index
        for index, name in enumerate(rows[0])
        if "ms" not in name.split() and "ms" not in name.split("_")
    ]
    return [[row[index] for index in kept] for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("keep").add_argument("folder", type=Path)
    both = commands.add_parser("compare")
    both.add_argument("before", type=Path)
    both.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "keep":
        keep(options.folder)
        return 0
    return compare_folders(options.before, options.after)


if __name__ == "__main__":
    sys.exit(main())
