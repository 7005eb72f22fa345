"""What only real processes show: signals, a full disk, two ranks, what is printed."""

import csv
import math
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vision.recipe import load_recipe
from vision.training.callbacks import StopAtSignal
from vision.training.processes import Processes, processes
from vision.training.train import _trainer, _validation_batch

ROOT = Path(__file__).parents[3]

SHORT = ["digits", "data.train_fraction=0.2", "train.batch_size=32", "num_experts=2"]
SHORT += ["train.epochs=2", "controls={}"]
# Runs the command line, and sends the process a signal while it trains on a batch.
SIGNALLED = """
import os, sys
from vision.commands.cli import main
from vision.training.module import CoETraining
number, step, original = int(sys.argv[1]), int(sys.argv[2]), CoETraining.training_step
def training_step(self, batch, batch_idx):
    if self.global_step == step:
        os.kill(os.getpid(), number)
    return original(self, batch, batch_idx)
CoETraining.training_step = training_step
sys.exit(main(sys.argv[3:]))
"""
# Files may not grow beyond a size that the first checkpoint fits and nothing larger does.
FULL = """
import resource, signal, sys
from vision.training import records as loops
from vision.commands.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
original, saved = loops.AtomicCheckpoints.save_checkpoint, []
def save_checkpoint(self, *args, **kwargs):
    if len(saved) == 2:  # the last and the best of the first epoch
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    original(self, *args, **kwargs)
    saved.append(1)
loops.AtomicCheckpoints.save_checkpoint = save_checkpoint
sys.exit(main(sys.argv[1:]))
"""


# Keeps the state after every step, and kills the second process in the step that is named.
KILLED = """
import os, signal, sys
from datetime import timedelta
from vision.training import train
from vision.commands.cli import main
from vision.training.module import CoETraining
train.KEEP = timedelta(microseconds=1)
step, original = int(sys.argv[1]), CoETraining.training_step
def training_step(self, batch, batch_idx):
    if self.global_step == step and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, batch, batch_idx)
CoETraining.training_step = training_step
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_signal_and_output(apart, same, final_state, tmp_path):
    """SIGTERM inside the second epoch; then as if nothing had been. Nothing useless is printed."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    done = apart("-c", SIGNALLED, 15, 9, "train", *SHORT, "--out", run)
    assert done.returncode == 143, done.stderr
    assert re.fullmatch(
        r"coe-vision train: stopped by SIGTERM; state kept in \S+, .*\n", done.stderr
    )
    assert final_state(run)["global_step"] == 10
    # Not in this process, whose threads and settings other tests may have changed: equal bit for bit.
    resumed = apart("-m", "vision", "train", *SHORT, "--out", run, "--resume")
    assert resumed.returncode == 0, resumed.stderr

    done = apart("-m", "vision", "train", *SHORT, "--out", whole)
    assert done.returncode == 0
    assert same(final_state(run), final_state(whole))
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    if lines[0].startswith("computing with"):  # not where the user has chosen
        lines.pop(0)
    assert lines.pop(0).startswith("to train: ")
    progress = r"epoch {}/2  [\d,]+ images/s  \d+:\d\d:\d\d left  validation: rough [\d.]+%  .*"
    assert re.fullmatch(progress.format(1), lines[0])
    assert re.fullmatch(progress.format(2), lines[1])
    assert re.fullmatch(rf"trained in \d+ s; run folder: {whole}", lines[2])
    assert lines[-1] == f"next: coe-vision evaluate {whole}"
    assert all(lines)


@pytest.mark.slow
def test_full_disk(apart, cli, tmp_path):
    run = tmp_path / "run"
    done = apart("-c", FULL, "train", *SHORT, "--out", run)
    assert done.returncode == 2
    assert re.fullmatch(
        r"coe-vision train: training into \S+ stopped: .*File too large.*; the last whole state is "
        r"in \S+/last.ckpt\n",
        done.stderr,
    )
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert content["epoch"] == 0
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert cli("train", *SHORT, "--out", run, "--resume") == 0


def node(python, number, port, *arguments):
    """What a user starts on one of two nodes, with one process each."""
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    torchrun += ["--node_rank", number, "--master_addr", "127.0.0.1", "--master_port", port]
    torchrun += ["--no_python", python]  # not the interpreter, whose imports take seconds
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [python, *map(str, [*torchrun, *arguments])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.process
@pytest.mark.slow
def test_two_nodes_do_what_one_process_does_lose_one_and_one_goes_on(cli, warm, tmp_path):
    """Same losses and weights on two nodes; one is killed; what was kept is continued by one process."""
    # No batch normalisation: its statistics are those of a process.
    network = "{name: test_resnet, options: {norm_layer: groupnorm1, drop_rate: 0}}"
    recipe = ["digits", "data.train_fraction=0.1", "train.batch_size=32", "num_experts=2"]
    recipe += ["train.epochs=3", "train.precision=32-true", "train.ema_decay=0.9", "controls={}"]
    recipe += ["objective.scope=queue", "objective.queue_size=50", "data.size=16"]
    recipe += ["objective.shared_start=0.3", "portions.follow=clusters"]
    recipe += [f"delegator={network}", f"experts={network}"]
    parts, whole, script = tmp_path / "parts", tmp_path / "whole", tmp_path / "killed.py"
    script.write_text(KILLED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = warm("vision") / "python"
    nodes = [node(python, n, port, script, 7, "train", *recipe, "--out", parts) for n in (0, 1)]
    assert cli("train", *recipe, "--out", whole) == 0
    (first, errors), _ = [each.communicate(timeout=500) for each in nodes]
    assert nodes[0].returncode != 0
    assert nodes[1].returncode != 0
    assert first.count("epoch 2/3") == 1, errors
    assert re.search(
        r"coe-vision train: training into \S+ stopped: rank 0 of 2 processes lost another one; the last "
        r"whole state is in \S+/last.ckpt; continue with --resume, on any number of processes\n",
        errors,
    )
    content = torch.load(parts / "checkpoints/last.ckpt", weights_only=True)
    assert (content["epoch"], content["global_step"]) == (2, 7)  # inside the third epoch
    logged = [rows(folder) for folder in (parts, whole)]
    assert len(logged[0]) == 4
    for own, other in zip(logged[0], logged[1], strict=False):
        for name, value in own.items():
            assert float(value or 0) == pytest.approx(float(other[name] or 0), abs=1e-5), name

    assert cli("train", *recipe, "--out", parts, "--resume") == 0
    ours, theirs = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (parts, whole)
    )
    # The average of what is not known at first is never known; nothing asks it.
    assert ours["current_model_state"]["portions.clusters.centres"].isfinite().all()
    for kind in ("state_dict", "current_model_state"):
        assert ours[kind].keys() == theirs[kind].keys()
        for name, value in ours[kind].items():
            torch.testing.assert_close(
                value, theirs[kind][name], atol=1e-5, rtol=1e-5, equal_nan=True
            )


def rows(folder):
    with (folder / "metrics/metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def srun(monkeypatch):
    """The fourth of four processes that srun started on two nodes."""
    names = {"NTASKS": 4, "NTASKS_PER_NODE": 2, "NNODES": 2, "PROCID": 3, "LOCALID": 1}
    names |= {"NODEID": 1, "JOB_NAME": "train", "NODELIST": "node[1-2]", "JOB_ID": 70123}
    for name, value in names.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    # A trainer makes this process the fourth for good: it would write no more logs.
    monkeypatch.setattr(rank_zero_only, "rank", 0)


def test_srun(srun, tmp_path, monkeypatch):
    team = processes()
    assert team == Processes(count=4, nodes=2, rank=3, launcher="srun")
    assert team.per_node == 2
    stop = StopAtSignal(tmp_path / "last.ckpt")
    trainer = _trainer(load_recipe("digits"), "x", tmp_path, stop, None, 0, team, ())
    assert (trainer.world_size, trainer.num_nodes, trainer.global_rank) == (4, 2, 3)
    monkeypatch.setenv("SLURM_NTASKS", "5")
    with pytest.raises(ValueError, match="5 processes on 2 nodes: start equally many on each"):
        processes()
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # a shell inside an allocation
    assert processes() == Processes()


def test_torchrun(monkeypatch):
    names = {"WORLD_SIZE": 16, "LOCAL_WORLD_SIZE": 8, "RANK": 9, "TORCHELASTIC_RUN_ID": "x"}
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))
    assert processes() == Processes(count=16, nodes=2, rank=9, launcher="torchrun")


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("num_images", [8, 257, 513, 514, 1025, 50_000, 128_117])
def test_every_process_validates_in_equally_many_batches(num_images, count):
    size = _validation_batch(num_images, count)
    batches = {math.ceil(len(range(rank, num_images, count)) / size) for rank in range(count)}
    assert len(batches) == 1
    assert 1 <= size <= 256


def test_too_few_validation_images_for_the_processes():
    with pytest.raises(ValueError, match="3 validation images for 4 processes"):
        _validation_batch(3, 4)
