"""The co-training objective: by hand, its gradients, options, edges and errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coe_core import CoTrainingObjective, balanced_assignment, js_divergence
from coe_core import objective as objective_file


class Batch:
    """Random inputs of the objective, in double, wanting gradients."""

    def __init__(self, n, k, seed=0):
        generator = torch.manual_seed(seed)
        self.rough = torch.rand(n, dtype=torch.float64, generator=generator).requires_grad_()
        self.expert = torch.rand(n, k, dtype=torch.float64, generator=generator).requires_grad_()
        self.evidence = -torch.rand(n, k, dtype=torch.float64, generator=generator)
        self.selection = torch.randn(n, k, dtype=torch.float64, generator=generator)
        self.selection.requires_grad_()

    def loss(self, objective, progress=1.0, **more):
        return objective(
            self.rough, self.expert, self.evidence, self.selection, progress=progress, **more
        )


def test_one_step_by_hand():
    objective = CoTrainingObjective(2, focus=0.5, focus_warmup=0.0, selection_weight=2.0)
    q = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
    truth = torch.tensor([[0.2, 0.6], [0.5, 0.3]])  # evidence favours the crossed assignment
    loss = objective(
        torch.tensor([1.0, 3.0]),
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        truth.log(),
        q.log(),
        progress=0.0,
    )
    assert loss.portion.tolist() == [0, 1]
    assert loss.labels.tolist() == [[0, 1], [1, 0]]
    assert loss.focus == 0.5
    # Weights: 0.5 + 0.5 * 2 for the portion, 0.5 for the rest.
    experts = (1.5 * 1 + 0.5 * 2 + 0.5 * 3 + 1.5 * 4) / 2
    # Spreads 0.2 and 0.1, so variances 4/3 and 2/3.
    selection = -(4 / 3 * torch.tensor(0.2).log() + 2 / 3 * torch.tensor(0.4).log()) / 2
    torch.testing.assert_close(loss.experts, torch.tensor(experts))
    torch.testing.assert_close(loss.rough, torch.tensor(2.0))
    torch.testing.assert_close(loss.selection, selection)
    torch.testing.assert_close(loss.agreement, torch.tensor(0.0))
    torch.testing.assert_close(loss.total, experts + 2.0 + 2.0 * selection)


@pytest.mark.parametrize("labels", ["balanced", "soft_balanced", "hard", "soft"])
@pytest.mark.parametrize("variance_weighting", [True, False])
def test_gradients_are_the_closed_forms(labels, variance_weighting):
    objective = CoTrainingObjective(
        3, focus=0.6, labels=labels, variance_weighting=variance_weighting, selection_weight=0.7
    )
    batch = Batch(6, 3)
    loss = batch.loss(objective)
    loss.total.backward()
    plan = torch.nn.functional.one_hot(loss.portion, 3).double()
    spread = batch.evidence.exp().std(1, correction=0)
    v = spread / spread.mean() if variance_weighting else torch.ones(6)
    selection = 0.7 * v[:, None] * (batch.selection.softmax(1) - loss.labels) / 6
    close = {"rtol": 1e-6, "atol": 1e-9}  # weights are float32
    torch.testing.assert_close(batch.rough.grad, torch.full((6,), 1 / 6, dtype=torch.float64))
    torch.testing.assert_close(batch.expert.grad, (0.4 + 0.6 * 3 * plan) / 6, **close)
    torch.testing.assert_close(batch.selection.grad, selection.double(), **close)


def test_scores_of_the_portions():
    batch = Batch(9, 3)
    log_q = batch.selection.detach().log_softmax(1)
    expected = {"selection": log_q, "evidence": batch.evidence, "sum": log_q + batch.evidence}
    portions = {}
    for scores, S in expected.items():
        portions[scores] = batch.loss(CoTrainingObjective(3, scores=scores)).portion.tolist()
        assert portions[scores] == balanced_assignment(S).expert.tolist()
    assert portions["selection"] != portions["evidence"]


def test_no_focus_is_an_ordinary_ensemble():
    batch = Batch(5, 3)
    loss = batch.loss(CoTrainingObjective(3, focus=0.0))
    torch.testing.assert_close(loss.experts, batch.expert.sum(1).mean())


def test_focus_follows_the_progress():
    objective = CoTrainingObjective(2, focus=0.6, focus_warmup=0.5)
    batch = Batch(4, 2)
    focus = [batch.loss(objective, progress).focus for progress in (0.0, 0.25, 0.5, 1.0)]
    assert focus == pytest.approx([0.0, 0.3, 0.6, 0.6])


def test_agreement_is_weighted_and_has_a_gradient():
    logits = torch.randn(4, 2, 5, generator=torch.manual_seed(0), requires_grad=True)
    term = js_divergence(logits)
    batch = Batch(4, 2)
    plain = batch.loss(CoTrainingObjective(2))
    loss = batch.loss(CoTrainingObjective(2, agreement_weight=0.25), agreement=term)
    torch.testing.assert_close(loss.agreement, term.mean())
    torch.testing.assert_close(loss.total, plain.total + 0.25 * term.mean())
    loss.total.backward()
    assert logits.grad.abs().sum() > 0


def test_even_labels_need_no_count_of_the_samples_of_all_processes(monkeypatch):
    counted = []
    count = objective_file.gather_rows
    monkeypatch.setattr(
        objective_file, "gather_rows", lambda rows: (counted.append(len(rows)), count(rows))[1]
    )
    Batch(12, 3).loss(CoTrainingObjective(3))
    assert counted == []
    Batch(12, 3).loss(CoTrainingObjective(3, shares=torch.tensor([1.0, 2.0, 3.0])))
    assert counted == [12]


def test_shares_hold_for_portions_and_labels():
    shares = torch.tensor([1.0, 2.0, 3.0])
    for labels in ("balanced", "soft_balanced"):
        loss = Batch(12, 3).loss(CoTrainingObjective(3, labels=labels, shares=shares))
        assert torch.bincount(loss.portion).tolist() == [2, 4, 6]
        assert loss.labels.sum(0).tolist() == pytest.approx([2, 4, 6], rel=1e-5)
    for labels in ("hard", "soft"):  # unbalanced labels ignore demand
        loss = Batch(12, 3).loss(CoTrainingObjective(3, labels=labels, shares=shares))
        even = Batch(12, 3).loss(CoTrainingObjective(3, labels=labels))
        torch.testing.assert_close(loss.labels, even.labels)


def test_the_state_of_the_scope_is_saved_with_the_objective():
    objective = CoTrainingObjective(2, scope="dataset", num_samples=4)
    Batch(4, 2).loss(objective, index=torch.arange(4))
    objective.partition.begin_epoch()
    resumed = CoTrainingObjective(2, scope="dataset", num_samples=4)
    resumed.load_state_dict(objective.state_dict())
    other = Batch(4, 2, seed=1)
    index = torch.tensor([3, 1, 0, 2])
    expected = other.loss(objective, index=index).portion.tolist()
    assert other.loss(resumed, index=index).portion.tolist() == expected


@given(per_expert=st.integers(1, 4), k=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_permuting_experts_permutes_everything(per_expert, k, seed):
    batch = Batch(per_expert * k, k, seed)
    objective = CoTrainingObjective(k)
    loss = batch.loss(objective)
    order = torch.randperm(k, generator=torch.manual_seed(seed))
    turned = objective(
        batch.rough,
        batch.expert[:, order],
        batch.evidence[:, order],
        batch.selection[:, order] + 7.0,
        progress=1.0,
    )
    torch.testing.assert_close(turned.total, loss.total)
    torch.testing.assert_close(turned.labels, loss.labels[:, order])
    assert order[turned.portion].tolist() == loss.portion.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_and_confident_logits_stay_finite(dtype):
    batch = Batch(6, 3)
    selection = (1e4 * batch.selection.detach()).to(dtype).requires_grad_()
    expert = batch.expert.detach().to(dtype).requires_grad_()
    loss = CoTrainingObjective(3)(
        batch.rough.detach().to(dtype), expert, batch.evidence.to(dtype), selection, progress=1.0
    )
    loss.total.backward()
    assert loss.total.isfinite()
    assert selection.grad.isfinite().all()
    assert expert.grad.isfinite().all()
    precise = batch.loss(CoTrainingObjective(3)).experts
    torch.testing.assert_close(loss.experts, precise.float(), rtol=2e-2, atol=0)


def test_one_expert_takes_everything():
    batch = Batch(5, 1)
    loss = batch.loss(CoTrainingObjective(1, focus=1.0, focus_warmup=0.0))
    torch.testing.assert_close(loss.experts, batch.expert.mean())
    torch.testing.assert_close(loss.selection, torch.tensor(0.0, dtype=torch.float64))


def test_fewer_samples_than_experts():
    loss = Batch(2, 5).loss(CoTrainingObjective(5))
    assert len(set(loss.portion.tolist())) == 2
    assert loss.total.isfinite()


def test_no_samples_have_no_loss_and_no_gradient():
    batch = Batch(0, 3)
    loss = batch.loss(CoTrainingObjective(3))
    loss.total.backward()
    assert loss.total.item() == 0
    assert batch.expert.grad.shape == (0, 3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("rough_loss", torch.zeros(4, 1), r"rough_loss has shape \(4, 1\), .* expected \(4,\)"),
        ("expert_loss", torch.zeros(3, 2), r"expert_loss has shape \(3, 2\), .* expected \(4, 2\)"),
        ("evidence", torch.zeros(4, 3), r"evidence has shape \(4, 3\), but rough_loss has 4 sampl"),
        ("selection_logits", torch.zeros(4), r"selection_logits has shape \(4,\), .* 2 experts"),
        ("labels", torch.zeros(4, 3), r"labels has shape \(4, 3\), .* expected \(4, 2\)"),
        ("agreement", torch.zeros(4, 2), r"agreement has shape \(4, 2\), .* expected \(4,\)"),
    ],
)
def test_shapes_that_disagree_are_an_error(name, wrong, message):
    arrays = {
        "rough_loss": torch.zeros(4),
        "expert_loss": torch.zeros(4, 2),
        "evidence": torch.zeros(4, 2),
        "selection_logits": torch.zeros(4, 2),
        "agreement": torch.zeros(4),
        name: wrong,
    }
    with pytest.raises(ValueError, match=message):
        CoTrainingObjective(2)(**arrays, progress=0.5)


def test_selection_logits_that_are_not_finite_are_an_error():
    batch = Batch(4, 2)
    batch.selection = torch.full((4, 2), torch.nan)
    with pytest.raises(ValueError, match="scores hold 8 values that are not finite of 8"):
        batch.loss(CoTrainingObjective(2))


def test_evidence_that_is_not_finite_is_an_error():
    batch = Batch(4, 2)
    batch.evidence[1, 1] = torch.nan
    with pytest.raises(ValueError, match="evidence holds 1 values that are not finite of 8"):
        batch.loss(CoTrainingObjective(2))


def test_progress_out_of_range_is_an_error():
    with pytest.raises(ValueError, match=r"progress must be in \[0, 1\], got 1.5"):
        Batch(4, 2).loss(CoTrainingObjective(2), progress=1.5)


def test_an_agreement_weight_without_a_term_is_an_error():
    with pytest.raises(
        ValueError, match=r"agreement_weight is 0\.5, but no agreement term was giv"
    ):
        Batch(4, 2).loss(CoTrainingObjective(2, agreement_weight=0.5))


def test_held_out_samples_teach_the_selection_and_no_expert():
    objective = CoTrainingObjective(3, held_out=0.4, labels="hard", focus_warmup=0.0)
    batch, index = Batch(50, 3), torch.arange(100, 150)
    loss = batch.loss(objective, index=index)
    loss.total.backward()
    apart = batch.expert.grad.eq(0).all(1)
    assert 18 <= int(apart.sum()) <= 22
    assert torch.equal(apart, batch.selection.grad.ne(0).any(1))
    assert torch.equal(apart, loss.labels.sum(1).eq(1))
    assert bool(batch.rough.grad.ne(0).all())
    # Means are over the samples that count.
    weights = 1 - 0.6 + 0.6 * 3 * torch.nn.functional.one_hot(loss.portion, 3)
    torch.testing.assert_close(loss.experts, (weights * batch.expert)[~apart].sum(1).mean())
    # The same samples in another batch, and in every later one.
    again = Batch(10, 3)
    again.loss(objective, index=index[:10]).total.backward()
    assert torch.equal(again.expert.grad.eq(0).all(1), apart[:10])


def test_random_portions_belong_to_the_sample():
    objective = CoTrainingObjective(4, scores="random")
    index = torch.arange(400)
    first = Batch(400, 4).loss(objective, index=index).portion
    other = Batch(400, 4, seed=1).loss(objective, index=index.flip(0)).portion.flip(0)
    assert torch.bincount(first).tolist() == [100] * 4
    assert (first == other).float().mean() > 0.98  # but for what balance moves


@pytest.mark.parametrize("option", [{"held_out": 0.1}, {"scores": "random"}])
def test_what_goes_by_the_index_needs_it(option):
    with pytest.raises(ValueError, match="go by each sample's index"):
        Batch(4, 2).loss(CoTrainingObjective(2, **option))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_experts": 0}, "num_experts must be at least 1"),
        ({"focus": 1.5}, r"focus must be in \[0, 1\], got 1.5"),
        ({"focus_warmup": -1.0}, r"warmup must be in \[0, 1\], got -1.0"),
        ({"scope": "epoch"}, "unknown scope 'epoch'"),
        ({"scores": "loss"}, "unknown scores 'loss'; known: 'selection', 'evidence', 'sum', 'r"),
        ({"held_out": 1.0}, r"held_out must be in \[0, 1\), got 1.0"),
        ({"labels": "even"}, "unknown label kind 'even'"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"selection_weight": -0.5}, "selection_weight must be finite and at least 0, got -0.5"),
        ({"agreement_weight": torch.nan}, "agreement_weight must be finite and at least 0, got n"),
        ({"agreement_weight": torch.inf}, "agreement_weight must be finite and at least 0, got i"),
        ({"shares": torch.ones(3)}, "3 shares for 2 experts"),
        ({"scope": "queue"}, "scope 'queue' needs queue_size"),
        ({"scope": "dataset"}, "scope 'dataset' needs num_samples"),
    ],
)
def test_impossible_options_are_an_error(option, message):
    with pytest.raises(ValueError, match=message):
        CoTrainingObjective(**{"num_experts": 2, **option})


def test_the_selection_learns_from_samples_that_stay():
    n, k = 6, 2
    generator = torch.Generator().manual_seed(0)
    expert_loss = torch.rand(n, k, generator=generator)
    stay = torch.tensor([0.0, 0, 0, 0.3, 0.6, 0.9])
    gradients = {}
    for weight in (0.0, 0.5, 1.0):
        logits = torch.randn(n, k, generator=torch.Generator().manual_seed(1)).requires_grad_()
        objective = CoTrainingObjective(k, stay_weight=weight, variance_weighting=False)
        objective(
            torch.zeros(n), expert_loss, -expert_loss, logits, progress=1.0, stay=stay
        ).total.backward()
        gradients[weight] = logits.grad
    share = stay / stay.mean()
    assert torch.allclose(gradients[1.0], share[:, None] * gradients[0.0])
    assert torch.allclose(gradients[0.5], 0.5 * gradients[0.0] + 0.5 * gradients[1.0])


def test_refusals_of_the_chance_to_stay():
    with pytest.raises(ValueError, match=r"stay_weight must be in \[0, 1\], got 2"):
        CoTrainingObjective(2, stay_weight=2)
    objective = CoTrainingObjective(2, stay_weight=1.0)
    zeros = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="each of 3 samples needs its chance to stay; got None"):
        objective(torch.zeros(3), zeros, zeros, zeros, progress=0.0)
