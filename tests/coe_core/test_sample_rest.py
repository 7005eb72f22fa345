"""Experts on their portion and a drawn part of the rest: unbiased, even, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coe_core import CoTrainingObjective, Drawn, draw_rest, sample_weights


def drawn(by_all, portion, k):
    """By hand: what `draw_rest` must say once it is known which samples were drawn."""
    portion, by_all = torch.tensor(portion), torch.tensor(by_all)
    factor = torch.zeros(len(portion), k)
    for i, j in enumerate(portion.tolist()):
        same = portion == j
        if by_all[i]:
            factor[i] = same.sum() / (same & by_all).sum()
        factor[i, j] = 1
    return Drawn(portion, by_all, factor > 0, factor)


@settings(max_examples=25)
@given(
    portion=st.lists(st.integers(0, 3), max_size=60),
    rate=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**31),
)
def test_who_runs_and_with_which_weight(portion, rate, seed):
    drawn_rest = draw_rest(
        torch.tensor(portion).long(), 4, rate, torch.Generator().manual_seed(seed)
    )
    expected = drawn(drawn_rest.by_all.tolist(), portion, 4) if portion else drawn_rest
    assert torch.equal(drawn_rest.runs, expected.runs)
    assert torch.allclose(drawn_rest.factor, expected.factor)
    for j in set(portion):  # of every portion that has samples one at least is seen by all
        assert drawn_rest.by_all[torch.tensor(portion) == j].any()
    assert [len(rows) for rows in drawn_rest.rows()] == drawn_rest.runs.sum(0).tolist()


@pytest.mark.parametrize(("n", "k"), [(256, 4), (257, 4), (259, 8), (10, 3)])
def test_balanced_portions_leave_every_expert_the_same_work(n, k):
    portion = torch.arange(n) % k
    for rate in (0.1, 0.25, 0.5):
        work = draw_rest(portion, k, rate).runs.sum(0)
        assert work.min() == work.max()
        cost = float(work.sum()) / (n * k)
        assert cost == pytest.approx((1 + (k - 1) * rate) / k, abs=2 * k / n)


def test_everything_is_drawn_at_rate_one():
    drawn_rest = draw_rest(torch.tensor([0, 1, 1, 2]), 3, 1.0)
    assert drawn_rest.runs.all()
    assert (drawn_rest.factor == 1).all()


def test_the_expected_loss_is_that_of_all_samples():
    """Mean over all draws, each as likely as any other, by enumeration of a small batch."""
    portion, k, focus = torch.tensor([0, 0, 0, 1, 1, 1]), 2, 0.6
    loss = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
    full = (sample_weights(portion, k, focus) * loss).sum()
    sums = []
    for first in range(3):
        for second in range(3, 6):
            by_all = [i in (first, second) for i in range(6)]
            factor = drawn(by_all, portion.tolist(), k).factor
            sums.append((sample_weights(portion, k, focus) * factor * loss).sum())
    assert torch.stack(sums).mean().item() == pytest.approx(full.item(), rel=1e-5)


def batch(n=12, k=3):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.rand(n, generator=generator),
        torch.rand(n, k, generator=generator),
        torch.randn(n, k, generator=generator),
    )


def test_the_objective_takes_the_portion_weights_and_teachers_of_the_draw():
    rough, loss, logits = batch()
    objective = CoTrainingObjective(3, focus=0.5, focus_warmup=0.2, sample_rest=0.5)
    drawn_rest = objective.draw(logits, progress=0.9, generator=torch.Generator().manual_seed(0))
    assert drawn_rest is not None
    assert torch.equal(drawn_rest.portion, objective.partition(logits.log_softmax(1)))
    unseen = torch.where(drawn_rest.runs, loss, torch.nan).requires_grad_()
    whole = objective(rough, unseen, -unseen.detach(), logits, progress=0.9, drawn=drawn_rest)
    weights = sample_weights(drawn_rest.portion, 3, 0.5) * drawn_rest.factor
    expected = (weights * loss.where(drawn_rest.runs, 0)).sum() / 12
    assert whole.experts.item() == pytest.approx(expected.item())
    whole.total.backward()
    assert (unseen.grad[~drawn_rest.runs] == 0).all()
    assert unseen.grad.isfinite().all()
    # One label for each sample that all experts saw, none for the others; balanced over the drawn.
    assert torch.equal(whole.labels.sum(1) > 0, drawn_rest.by_all)
    assert whole.labels.sum(0).tolist() == [2, 2, 2]


def test_at_rate_one_nothing_changes():
    rough, loss, logits = batch()
    objective = CoTrainingObjective(3)
    assert objective.draw(logits, progress=0.9) is None
    everything = draw_rest(objective.partition(logits.log_softmax(1)), 3, 1.0)
    with_draw = objective(rough, loss, -loss, logits, progress=0.9, drawn=everything)
    without = objective(rough, loss, -loss, logits, progress=0.9)
    assert with_draw.total.item() == pytest.approx(without.total.item())
    assert torch.equal(with_draw.labels, without.labels)


def test_no_draw_while_the_focus_rises():
    _, _, logits = batch()
    assert (
        CoTrainingObjective(3, focus_warmup=0.3, sample_rest=0.5).draw(logits, progress=0.29)
        is None
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": "evidence"}, "scores 'evidence' need what every expert says"),
        ({"scores": "sum"}, "take scores 'selection'"),
        ({"held_out": 0.1}, "held_out 0.1 needs every expert on every sample; set it to 0"),
        ({"agreement_weight": 0.2}, "agreement_weight 0.2 needs every expert"),
        ({"sample_rest": 0.0}, r"sample_rest must be in \(0, 1\], got 0.0"),
        ({"sample_rest": 1.1}, "got 1.1"),
    ],
)
def test_what_needs_every_expert_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CoTrainingObjective(3, **{"sample_rest": 0.5, **options})


def test_random_portions_are_drawn_by_index():
    objective = CoTrainingObjective(3, scores="random", sample_rest=0.5)
    with pytest.raises(ValueError, match="scores 'random' go by each sample's index"):
        objective.draw(batch()[2], progress=0.9)
    drawn = objective.draw(batch()[2], progress=0.9, index=torch.arange(12))
    assert drawn.portion.bincount().tolist() == [4, 4, 4]


def test_labels_made_elsewhere_teach_on_every_sample():
    rough, loss, logits = batch()
    objective = CoTrainingObjective(3, sample_rest=0.25)
    labels = torch.nn.functional.one_hot(torch.arange(12) % 3, 3).float()
    drawn = objective.draw(logits, progress=0.9)
    with_draw = objective(rough, loss, -loss, logits, progress=0.9, labels=labels, drawn=drawn)
    without = objective(rough, loss, -loss, logits, progress=0.9, labels=labels)
    assert with_draw.selection.item() == without.selection.item()


@pytest.mark.parametrize(
    ("portion", "rate", "message"),
    [
        ([0, 1], 0.0, r"rate must be in \(0, 1\], got 0.0"),
        ([0, 1], 1.5, r"got 1.5"),
        ([0, 1], float("nan"), r"got nan"),
        ([0, 2], 0.5, r"portion holds experts 0..2, but there are 2 experts \(0..1\)"),
        ([-1, 0], 0.5, r"portion holds experts -1..0"),
    ],
)
def test_bad_draws(portion, rate, message):
    with pytest.raises(ValueError, match=message):
        draw_rest(torch.tensor(portion), 2, rate)
