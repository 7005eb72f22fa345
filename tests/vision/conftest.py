"""One tiny trained run, shared; and the command as users call it."""

import functools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
# 227 training images in 7 batches; 3 experts; about two seconds an epoch with nothing else running.
TINY = ["data.train_fraction=0.2", "train.batch_size=32", "num_experts=3", "train.epochs=2"]
TINY += ["train.precision=32-true"]  # so that batches of other sizes agree to 1e-5


@pytest.fixture(scope="session")
def cli() -> Callable[..., int]:
    """The command line in this process; returns the exit status."""
    from vision.commands.cli import main

    def call(*arguments: object) -> int:
        return main([str(argument) for argument in arguments])

    return call


@pytest.fixture(scope="session")
def apart(warm) -> Callable[..., subprocess.CompletedProcess]:
    """Python in a process of its own, which has imported the trainer."""

    def call(*arguments: object) -> subprocess.CompletedProcess:
        command = [warm("vision") / "python", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    return call


@pytest.fixture(scope="session")
def trained(cli, made_once) -> Path:
    """Folder of a tiny run on digits that deploys its collaboration. To be read only: copy it first."""
    from vision.evaluation.calibrate import default_points
    from vision.run import load_run, load_run_data

    def make(folder: Path) -> None:
        assert cli("train", "digits", *TINY, "--out", folder) == 0
        run = load_run(folder)
        default_points(run, load_run_data(run), system="coe")  # whichever would win

    return made_once("trained", make)


@pytest.fixture(scope="session")
def operators_once() -> Iterator[None]:
    """ONNX's table of torch's operators is made once: two seconds, that an export takes for every network."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        table = functools.cache(ONNXRegistry.from_torchlib)
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(table))
        yield


@pytest.fixture(scope="session")
def same() -> Callable[[object, object], bool]:
    """Bit for bit, at any depth; NaN equals NaN."""

    def equal(a: object, b: object) -> bool:
        if isinstance(a, torch.Tensor):
            return (
                isinstance(b, torch.Tensor)
                and a.dtype == b.dtype
                and a.shape == b.shape
                and bool(((a == b) | ((a != a) & (b != b))).all())
            )
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(equal, a, b))
        return a == b

    return equal


@pytest.fixture(scope="session")
def final_state() -> Callable[[Path], dict]:
    """All that the next step of training depends on."""
    names = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")
    names += ("lr_schedulers", "global_step", "epoch")

    def read(folder: Path) -> dict:
        content = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
        kept = {name: content[name] for name in names if name in content}
        return {**kept, "random": content["callbacks"]["RandomState"]}

    return read
