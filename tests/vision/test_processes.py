"""What only real processes show: signals, a full disk, two ranks, what is printed."""

import csv
import os
import re
import subprocess
import sys

import pytest
import torch

SHORT = ["digits", "data.train_fraction=0.2", "train.batch_size=32", "num_experts=2"]
SHORT += ["train.epochs=2", "controls={}"]
# Runs the command line, and sends the process a signal while it trains on a batch.
SIGNALLED = """
import os, sys
from vision.cli import main
from vision.training import CoETraining
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
from vision import loops
from vision.cli import main
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


@pytest.mark.slow
def test_signal_and_output(shell, cli, same, final_state, tmp_path):
    """SIGTERM inside the second epoch; then as if nothing had been. Nothing useless is printed."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    done = shell("-c", SIGNALLED, 15, 9, "train", *SHORT, "--out", run)
    assert done.returncode == 143, done.stderr
    assert re.fullmatch(
        r"coe-vision train: stopped by SIGTERM; state kept in \S+, .*\n", done.stderr
    )
    assert final_state(run)["global_step"] == 10
    assert cli("train", *SHORT, "--out", run, "--resume") == 0

    done = shell("-m", "vision", "train", *SHORT, "--out", whole)
    assert done.returncode == 0
    assert same(final_state(run), final_state(whole))
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    progress = r"epoch {}/2  [\d,]+ images/s  \d+:\d\d:\d\d left  validation: rough [\d.]+%  .*"
    assert re.fullmatch(progress.format(1), lines[0])
    assert re.fullmatch(progress.format(2), lines[1])
    assert re.fullmatch(rf"trained in \d+ s; run folder: {whole}", lines[2])
    assert lines[-1] == f"next: coe-vision evaluate {whole}"
    assert all(lines)


@pytest.mark.slow
def test_full_disk(shell, cli, tmp_path):
    run = tmp_path / "run"
    done = shell("-c", FULL, "train", *SHORT, "--out", run)
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


@pytest.mark.slow
def test_two_ranks(cli, tmp_path):
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "-m",
        "vision",
    ]
    command += ["train", *SHORT, "train.epochs=1", "--out", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/1") == 1
    assert done.stdout.count("trained in") == 1
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 7
    with (run / "metrics/metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["6", "6"]
    assert cli("evaluate", run, "--no-time") == 0
