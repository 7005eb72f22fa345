"""Two real processes do together what one does with the joined batch."""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest
import torch

from coe_core import gather_rows
from coe_core.distributed import in_process_group

SCRIPT = Path(__file__).with_name("process_group_rank.py")
ROOT = Path(__file__).parents[2]

spec = importlib.util.spec_from_file_location("process_group_rank", SCRIPT)
rank_script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rank_script)

STEPS = range(len(rank_script.COUNTS))


@pytest.fixture(scope="module")
def ranks(warm, tmp_path_factory):
    """What each rank of a process group of two made of its rows."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [warm("vision") / "python", str(SCRIPT), str(rank), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, output = process.communicate(timeout=120)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    """What one process makes of all rows."""
    return rank_script.work(None)


@pytest.mark.parametrize("scope", rank_script.SCOPES)
def test_portions_are_those_of_the_joined_batch(ranks, alone, scope):
    for step in STEPS:
        name = f"portion {scope} {step}"
        assert [len(rank[name]) for rank in ranks] == list(rank_script.COUNTS[step])
        assert torch.cat([rank[name] for rank in ranks]).tolist() == alone[name].tolist()


@pytest.mark.parametrize("scope", rank_script.SCOPES)
def test_the_state_is_the_same_on_all_ranks(ranks, alone, scope):
    name = f"state {scope}"
    for rank in ranks:
        assert rank[name].keys() == alone[name].keys()
        for key, value in alone[name].items():
            torch.testing.assert_close(rank[name][key], value, rtol=0, atol=0, equal_nan=True)
    if scope == "dataset":
        assert (alone[name]["table_portion"] >= 0).all()  # it came to partition all samples


@pytest.mark.parametrize("kind", [*rank_script.LABELS, "shares"])
def test_labels_are_those_of_the_joined_batch(ranks, alone, kind):
    for step in STEPS:
        name = f"labels {kind} {step}"
        joined = torch.cat([rank[name] for rank in ranks])
        torch.testing.assert_close(joined, alone[name], rtol=0, atol=1e-6)


def test_balance_holds_over_the_joined_batch_and_not_within_ranks(ranks):
    loads = [rank["labels balanced 0"].sum(0) for rank in ranks]
    assert sorted((loads[0] + loads[1]).tolist()) == [2, 3, 3]
    assert any(load.max() - load.min() > 1 for load in loads)


def test_variance_is_that_of_the_joined_batch(ranks, alone):
    for step in STEPS:
        joined = torch.cat([rank[f"variance {step}"] for rank in ranks])
        torch.testing.assert_close(joined, alone[f"variance {step}"])


@pytest.mark.parametrize("scope", rank_script.SCOPES)
@pytest.mark.parametrize("labels", rank_script.LABELS)
def test_mean_of_the_ranks_gradients_is_the_gradient_of_one(ranks, alone, scope, labels):
    name = f"gradient {scope} {labels}"
    assert alone[name].keys() == {"rough_loss", "expert_loss", "scores"}
    for key, expected in alone[name].items():
        mean = sum(rank[name][key] for rank in ranks) / 2
        torch.testing.assert_close(mean, expected)
    mean = sum(rank[f"total {scope} {labels}"] for rank in ranks) / 2
    torch.testing.assert_close(mean, alone[f"total {scope} {labels}"])


@pytest.mark.parametrize("dtype", rank_script.DTYPES)
def test_rows_of_any_dtype_are_joined_in_rank_order(ranks, alone, dtype):
    for rank in ranks:
        gathered = rank[f"gather {dtype}"]
        assert gathered.dtype == dtype
        assert torch.equal(gathered, alone[f"gather {dtype}"])


def test_bad_rows_on_one_rank_are_an_error_on_all(ranks):
    assert ranks[0]["errors"] == ranks[1]["errors"]
    assert len(ranks[0]["errors"]) == 9
    assert all("NaN" in message or "not finite" in message for message in ranks[0]["errors"])


def test_without_a_process_group_rows_are_the_input():
    rows = torch.rand(3, 2, requires_grad=True)
    gathered = gather_rows(rows)
    assert not in_process_group()
    assert torch.equal(gathered.rows, rows)
    assert not gathered.rows.requires_grad
    assert gathered.own == slice(0, 3)
    assert gather_rows(torch.zeros(0, 2)).own == slice(0, 0)
