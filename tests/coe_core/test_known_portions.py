"""Portions that the user knows: by hand, balanced with the rest, in every scope, and their errors."""

import pytest
import torch

from coe_core import CoTrainingObjective, Partitioner, choice_variance
from coe_core.weights import remaining_demand

KNOWN = torch.tensor([1, -1, -1, 1])
Q = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.7, 0.3]])
TRUTH = torch.tensor([[0.6, 0.2], [0.5, 0.3], [0.3, 0.4], [0.4, 0.4]])


def step(objective, known=KNOWN, progress=1.0, **more):
    arrays = torch.zeros(4), torch.ones(4, 2), TRUTH.log(), Q.log()
    return objective(*arrays, progress=progress, known_portion=known, **more)


def test_one_step_by_hand():
    loss = step(CoTrainingObjective(2, focus=0.5, focus_warmup=0.0, selection_weight=2.0))
    # Expert 1 has its half: the rest is expert 0's, in portions and in labels.
    assert loss.portion.tolist() == [1, 0, 0, 1]
    assert loss.labels.tolist() == [[0, 1], [1, 0], [1, 0], [0, 1]]
    # Spreads 0.2, 0.1, 0.05, 0 have the mean 0.0875; a known sample counts 1 whatever they are.
    v = torch.tensor([1.0, 0.1 / 0.0875, 0.05 / 0.0875, 1.0])
    by_hand = -(v * torch.tensor([0.1, 0.8, 0.6, 0.3]).log()).mean()
    torch.testing.assert_close(loss.selection, by_hand)
    torch.testing.assert_close(loss.total, torch.tensor(2.0) + 2 * by_hand)


def test_nothing_known_is_as_without():
    for options in ({}, {"labels": "soft_balanced"}, {"shares": torch.tensor([1.0, 3.0])}):
        none = step(CoTrainingObjective(2, **options), known=torch.full((4,), -1))
        plain = step(CoTrainingObjective(2, **options), known=None)
        assert none.portion.tolist() == plain.portion.tolist()
        torch.testing.assert_close(none.labels, plain.labels)
        torch.testing.assert_close(none.total, plain.total)


@pytest.mark.parametrize("labels", ["balanced", "soft_balanced", "hard", "soft"])
def test_all_known_need_no_evidence(labels):
    known = torch.tensor([1, 1, 1, 0])
    loss = step(CoTrainingObjective(2, labels=labels, focus=1.0, focus_warmup=0.0), known=known)
    assert loss.portion.tolist() == known.tolist()
    assert loss.labels.argmax(1).tolist() == known.tolist()
    assert loss.labels.sum(1).tolist() == [1, 1, 1, 1]
    torch.testing.assert_close(loss.selection, -Q.log()[torch.arange(4), known].mean())


def test_the_rest_is_balanced_with_what_the_known_leave():
    generator = torch.manual_seed(0)
    scores = torch.randn(12, 3, generator=generator)
    known = torch.tensor([0] * 6 + [1] + [-1] * 5)  # even: 4 each; expert 0 has too many
    arrays = torch.rand(12), torch.rand(12, 3), -torch.rand(12, 3), scores
    for labels in ("balanced", "soft_balanced"):
        objective = CoTrainingObjective(3, labels=labels)
        loss = objective(*arrays, progress=1.0, known_portion=known)
        assert loss.portion[:7].tolist() == known[:7].tolist()
        assert torch.bincount(loss.portion[7:], minlength=3).tolist() == [0, 2, 3]
        assert loss.labels[7:, 0].tolist() == [0] * 5
        assert loss.labels[7:].sum(0).tolist() == pytest.approx([0, 15 / 7, 20 / 7], abs=0.2)


def test_shares_count_the_known():
    objective = CoTrainingObjective(2, shares=torch.tensor([3.0, 1.0]))
    loss = step(objective, known=torch.tensor([-1, 0, -1, -1]))
    assert torch.bincount(loss.portion).tolist() == [3, 1]
    assert loss.labels.sum(0).tolist() == [3, 1]


def test_evidence_takes_over():
    objective = CoTrainingObjective(2, known_until=0.5)
    assert step(objective, progress=0.49).portion.tolist() == [1, 0, 0, 1]
    for after in (0.5, 1.0):
        free, plain = step(objective, progress=after), step(objective, None, progress=after)
        assert free.portion.tolist() == plain.portion.tolist()
        assert free.labels.tolist() == plain.labels.tolist()
    never = step(CoTrainingObjective(2, known_until=0.0), progress=0.0)
    assert never.portion.tolist() == [0, 0, 1, 1]


def test_held_out_known_samples_teach_the_selection_alone():
    objective = CoTrainingObjective(2, held_out=0.5, focus=1.0, focus_warmup=0.0)
    loss = step(objective, index=torch.tensor([0, 1, 2, 3]))  # 0, 0.62, 0.24, 0.85: two are apart
    assert loss.labels.tolist() == [[0, 1], [0, 0], [1, 0], [0, 0]]
    assert loss.portion.tolist() == [1, 0, 0, 1]


def test_given_labels_stay_as_they_are():
    given = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.5, 0.5]])
    loss = step(CoTrainingObjective(2), labels=given)
    assert torch.equal(loss.labels, given)
    assert loss.portion.tolist() == [1, 0, 0, 1]


def test_the_queue_and_the_table_remember_what_is_known():
    scores, known = Q.log(), torch.tensor([1, 1, 1, -1])
    queue = Partitioner(2, "queue", queue_size=4)
    queue(scores, known=known)
    # Eight samples, four each; expert 1 has its three of before, of the best of these it gets one.
    assert queue(scores).tolist() == [0, 0, 1, 0]
    table = Partitioner(2, "dataset", num_samples=4)
    index = torch.arange(4)
    assert table(scores, index, known).tolist() == [1, 1, 1, 0]
    table.begin_epoch()
    assert table(scores, index).tolist() == [1, 1, 1, 0]  # as at the start of the epoch


def test_what_remains_of_a_demand():
    demand = torch.tensor([4, 4, 4])
    assert remaining_demand(demand, torch.tensor([0, 4, 1]), 7).tolist() == [4, 0, 3]
    assert remaining_demand(demand, torch.tensor([12, 0, 0]), 0).tolist() == [0, 0, 0]
    assert remaining_demand(demand, torch.tensor([9, 0, 0]), 3).tolist() == [0, 2, 1]


def test_one_expert_and_no_samples():
    loss = CoTrainingObjective(1)(
        torch.zeros(2), torch.ones(2, 1), torch.zeros(2, 1), torch.zeros(2, 1), 1.0,
        known_portion=torch.tensor([0, -1]),
    )  # fmt: skip
    assert loss.portion.tolist() == [0, 0]
    assert loss.labels.tolist() == [[1.0], [1.0]]
    empty = CoTrainingObjective(2)(
        torch.zeros(0), torch.ones(0, 2), torch.zeros(0, 2), torch.zeros(0, 2), 1.0,
        known_portion=torch.zeros(0, dtype=torch.long),
    )  # fmt: skip
    assert empty.total == 0


def test_a_known_sample_may_be_one_that_no_choice_matters_for():
    assert choice_variance(TRUTH.log())[3] == 0  # (V1) would not teach the selection from it
    assert step(CoTrainingObjective(2)).selection > 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("known", "message"),
    [
        (torch.tensor([0, 1, 2, -1]), r"hold -1\.\.2, but there are 2 experts \(0\.\.1, or -1"),
        (torch.tensor([0, 1, -2, 0]), r"known portions hold -2\.\.1, but there are 2 experts"),
        (torch.tensor([0, 1]), r"known portions have shape \(2,\), but there are 4 samples: give"),
        (torch.zeros(4, 1).long(), r"known portions have shape \(4, 1\), but there are 4 samples"),
        (torch.zeros(4), r"known portions must hold the numbers of experts, got torch\.float32"),
        (
            torch.zeros(4).bool(),
            r"known portions must hold the numbers of experts, got torch\.bool",
        ),
    ],
)
def test_known_portions_that_cannot_be_are_an_error(known, message):
    with pytest.raises(ValueError, match=message):
        step(CoTrainingObjective(2), known=known)
    with pytest.raises(ValueError, match=message):
        Partitioner(2)(Q.log(), known=known)


def test_the_part_that_they_hold_for_is_checked():
    with pytest.raises(ValueError, match=r"known_until must be in \[0, 1\], got 1\.5"):
        CoTrainingObjective(2, known_until=1.5)
