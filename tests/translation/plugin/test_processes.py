"""fairseq-train in two processes on the CPU."""

import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]


@pytest.mark.process
def test_two_processes_train_one_team(corpus, shell, warm, tmp_path):
    """legacy_ddp: fairseq's default wrapper names a GPU even with --cpu, which torch refuses."""
    command = [
        warm("translation") / "fairseq-train",
        *(corpus.binary, *shell.PLUGIN, *shell.TRAIN, *shell.TEAM, "--max-update", "4"),
        *("--save-dir", tmp_path, "--disable-validation", "--ddp-backend", "legacy_ddp"),
        *("--distributed-world-size", "2", "--distributed-no-spawn"),
        *("--distributed-backend", "gloo", "--distributed-init-method", f"file://{tmp_path}/store"),
    ]
    ranks = [
        subprocess.Popen(
            [str(word) for word in (*command, "--distributed-rank", rank)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    logs = [process.communicate(timeout=300)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], logs[0][-3000:]
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
    assert state["optimizer_history"][-1]["num_updates"] == 4
    assert all(value.isfinite().all() for value in state["model"].values())


def test_fairseq_hydra_train(corpus, tmp_path, apart):
    apart(
        *("fairseq-hydra-train", f"hydra.run.dir={tmp_path}", "common.cpu=true"),
        "common.bf16=true",  # fairseq-train --bf16 is for TPUs only
        *(f"common.user_dir={ROOT / 'translation'}", "+task._name=coe_translation"),
        *(f"+task.data={corpus.binary}", "+task.router=random"),
        *("+model._name=coe_transformer_tiny", "+model.num_experts=3"),
        *("criterion._name=coe_label_smoothed_cross_entropy", "+criterion.focus=0.4"),
        *("+optimizer._name=adam", "lr_scheduler._name=fixed", "optimization.lr=[0.005]"),
        *("optimization.max_update=2", "dataset.max_tokens=600", "dataset.num_workers=0"),
        *(f"checkpoint.save_dir={tmp_path}", "dataset.disable_validation=true"),
    )
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
    assert state["cfg"]["criterion"]["focus"] == 0.4
    weight = state["model"]["experts.2.encoder.layers.1.fc1.weight"]
    assert torch.equal(weight, weight.bfloat16().float())  # saved as float32, as fairseq does
    assert all(value.isfinite().all() for value in state["model"].values())
    assert "experts.2.encoder.layers.1.fc1.weight" in state["model"]
    assert "experts.2.encoder.layers.2.fc1.weight" not in state["model"]  # the preset's two layers
