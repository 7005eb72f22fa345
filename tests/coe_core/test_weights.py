"""Demands, focus, sample weights, and the partitioner's scopes."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coe_core import (
    Partitioner,
    balanced_assignment,
    demand_from_shares,
    even_demand,
    ramped_focus,
    sample_weights,
    weights,
)


def scores_of(n, k, seed=0):
    return torch.randn(n, k, generator=torch.manual_seed(seed))


def loads(portion, k):
    return torch.bincount(portion, minlength=k).tolist()


# demand_from_shares


def test_demand_by_hand():
    assert demand_from_shares(10, torch.tensor([1.0, 1.0, 2.0])).tolist() == [3, 2, 5]
    assert demand_from_shares(7, torch.tensor([0.0, 3.0])).tolist() == [0, 7]
    assert demand_from_shares(0, torch.tensor([1.0, 2.0])).tolist() == [0, 0]
    assert demand_from_shares(1, torch.ones(3)).tolist() == [1, 0, 0]


@given(
    st.integers(0, 5000),
    st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), min_size=1, max_size=8).filter(any),
)
def test_demand_sums_to_n_and_is_within_one_of_the_ideal(n, shares):
    demand = demand_from_shares(n, torch.tensor(shares, dtype=torch.float64))
    ideal = n * torch.tensor(shares, dtype=torch.float64) / sum(shares)
    assert int(demand.sum()) == n
    assert ((demand - ideal).abs() < 1 + 1e-9).all()
    assert all(int(d) == 0 for d, share in zip(demand, shares, strict=True) if share == 0)


@given(st.integers(0, 200), st.integers(1, 9))
def test_equal_shares_are_the_even_demand(n, k):
    assert demand_from_shares(n, torch.ones(k)).tolist() == even_demand(n, k).tolist()


def test_only_ratios_of_shares_matter():
    huge = torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64) * 8e307
    assert demand_from_shares(10, huge).tolist() == [3, 2, 5]
    assert demand_from_shares(10, huge * 1e-308 * 1e-300).tolist() == [3, 2, 5]
    assert demand_from_shares(10, torch.tensor([1.0, 1.0, 2.0]).bfloat16()).tolist() == [3, 2, 5]


@pytest.mark.parametrize("shares", [[-1.0, 2.0], [0.0, 0.0], [torch.nan, 1.0], [torch.inf, 1.0]])
def test_shares_that_make_no_portions_are_an_error(shares):
    with pytest.raises(ValueError, match="shares must be finite, non-negative and not all zero"):
        demand_from_shares(10, torch.tensor(shares))


def test_a_negative_number_of_samples_is_an_error():
    with pytest.raises(ValueError, match="cannot hand out -1 samples"):
        demand_from_shares(-1, torch.ones(2))


# ramped_focus


def test_focus_rises_in_a_straight_line_then_stays():
    ramp = [ramped_focus(0.6, p, warmup=0.5) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert ramp == pytest.approx([0.0, 0.3, 0.6, 0.6, 0.6])
    assert ramped_focus(0.6, 0.0, warmup=0.0) == 0.6
    assert ramped_focus(0.0, 0.7, warmup=0.5) == 0.0
    assert ramped_focus(1.0, 0.5, warmup=1.0) == 0.5


@pytest.mark.parametrize("name", ["focus", "progress", "warmup"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_focus_out_of_range_is_an_error(name, value):
    settings = {"focus": 0.5, "progress": 0.5, "warmup": 0.5, name: value}
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\], got {value}"):
        ramped_focus(**settings)


# sample_weights


def test_weights_by_hand():
    weights = sample_weights(torch.tensor([2, 0]), num_experts=3, focus=0.5)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.5, 2.0], [2.0, 0.5, 0.5]]))


@given(st.integers(1, 6), st.integers(1, 5), st.floats(0, 1))
def test_rows_and_columns_of_equal_portions_have_mean_one(k, per_expert, focus):
    weights = sample_weights(torch.arange(k).repeat(per_expert), k, focus)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.mean(1), torch.ones(k * per_expert))
    torch.testing.assert_close(weights.mean(0), torch.ones(k))


def test_no_focus_is_an_ordinary_ensemble_and_full_focus_the_portion_alone():
    portion = torch.tensor([0, 1, 1])
    assert sample_weights(portion, 2, 0.0).tolist() == [[1, 1]] * 3
    assert sample_weights(portion, 2, 1.0).tolist() == [[2, 0], [0, 2], [0, 2]]


def test_weights_of_no_samples_and_of_one_expert():
    assert sample_weights(torch.zeros(0, dtype=torch.long), 3, 0.5).shape == (0, 3)
    assert sample_weights(torch.zeros(4, dtype=torch.int32), 1, 0.7).tolist() == [[1.0]] * 4


@pytest.mark.parametrize("focus", [-0.1, 1.1, float("nan")])
def test_weights_with_a_focus_out_of_range_are_an_error(focus):
    with pytest.raises(ValueError, match=r"focus must be in \[0, 1\]"):
        sample_weights(torch.tensor([0]), 2, focus)


@pytest.mark.parametrize("portion", [[0, 3], [-1, 2]])
def test_a_portion_of_no_expert_is_an_error(portion):
    message = rf"portion holds experts {portion[0]}..{portion[1]}, but there are 3 experts \(0..2\)"
    with pytest.raises(ValueError, match=message):
        sample_weights(torch.tensor(portion), 3, 0.5)


# Partitioner


def test_batch_scope_is_the_balanced_assignment():
    scores = scores_of(11, 4)
    portion = Partitioner(4)(scores)
    assert portion.tolist() == balanced_assignment(scores).expert.tolist()
    assert loads(portion, 4) == [3, 3, 3, 2]


def test_the_solver_reads_the_scores_where_they_are(monkeypatch):
    scores, seen = torch.randn(64, 4).log_softmax(1), []

    def watched(given, demand):
        seen.append(given)
        return balanced_assignment(given, demand)

    monkeypatch.setattr(weights, "balanced_assignment", watched)
    partition = Partitioner(4)
    partition(scores)
    partition(scores, known=torch.arange(64) % 5 - 1)  # some known: of the others a copy
    assert [some.data_ptr() == scores.data_ptr() for some in seen] == [True, False]


@given(st.integers(0, 20), st.integers(1, 5), st.integers(0, 10**6))
def test_permuting_experts_permutes_portions_and_row_constants_change_nothing(n, k, seed):
    n = n * k  # where k does not divide n, which experts get one more depends on their order
    scores = scores_of(n, k, seed).double()  # random doubles: the optimum is unique
    portion = Partitioner(k)(scores)
    order = torch.randperm(k, generator=torch.manual_seed(seed))
    assert order[Partitioner(k)(scores[:, order])].tolist() == portion.tolist()
    assert Partitioner(k)(scores + scores_of(n, 1, 1)).tolist() == portion.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scores_of_any_precision(dtype):
    scores = torch.tensor([[2.0, 0.0], [1.0, 0.0]], dtype=dtype)
    assert Partitioner(2)(scores).tolist() == [0, 1]


def test_scores_in_double_are_not_rounded():
    scores = torch.tensor([[1.0 + 1e-12, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert Partitioner(2)(scores).tolist() == [0, 1]
    assert Partitioner(2)(scores.flip(0)).tolist() == [1, 0]


def test_edges_of_the_batch_scope():
    assert Partitioner(1)(scores_of(5, 1)).tolist() == [0] * 5
    assert Partitioner(3)(torch.zeros(0, 3)).tolist() == []
    assert len(set(Partitioner(5)(scores_of(3, 5)).tolist())) == 3  # n < k: at most one each
    assert loads(Partitioner(3)(torch.zeros(9, 3)), 3) == [3, 3, 3]  # all tied


def test_portions_carry_no_gradient_and_take_scores_that_do():
    assert not Partitioner(2)(torch.zeros(4, 2, requires_grad=True)).requires_grad


def test_shares_make_unequal_portions():
    partition = Partitioner(3, shares=torch.tensor([1.0, 1.0, 2.0]))
    assert loads(partition(scores_of(12, 3)), 3) == [3, 3, 6]
    empty = Partitioner(2, shares=torch.tensor([0.0, 1.0]))
    assert empty(scores_of(6, 2)).tolist() == [1] * 6


def test_queue_scope_balances_the_batch_together_with_the_queue():
    partition = Partitioner(2, "queue", queue_size=4)
    to_first, to_second = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    assert partition(to_first.repeat(4, 1)).tolist().count(0) == 2  # nothing to compare with yet
    # The queue holds four samples of expert 0, so all four new ones can have expert 1.
    assert partition(to_second.repeat(4, 1)).tolist() == [1, 1, 1, 1]
    # Not so for a batch on its own.
    assert Partitioner(2)(to_second.repeat(4, 1)).tolist().count(1) == 2


def test_queue_scope_solves_the_joined_problem_and_forgets_the_oldest():
    partition = Partitioner(3, "queue", queue_size=5)
    steps = [scores_of(4, 3, seed) for seed in range(4)]
    before = torch.zeros(0, 3)
    for scores in steps:
        joined = torch.cat([scores, before])
        expected = balanced_assignment(joined).expert[:4]
        assert partition(scores).tolist() == expected.tolist()
        before = joined[:5]
    assert torch.equal(partition.queue, torch.cat([steps[3], steps[2][:1]]))


def test_a_batch_larger_than_the_queue():
    partition = Partitioner(2, "queue", queue_size=2)
    scores = scores_of(6, 2)
    assert loads(partition(scores), 2) == [3, 3]
    assert torch.equal(partition.queue, scores[:2])


def dataset_partition(n=12, k=3):
    return Partitioner(k, "dataset", num_samples=n), scores_of(n, k, seed=n)


def test_dataset_scope_falls_back_to_the_batch_until_every_sample_was_seen():
    partition, scores = dataset_partition()
    index = torch.randperm(12, generator=torch.manual_seed(0))
    for part in index[:8].split(4):
        assert partition(scores[part], part).tolist() == Partitioner(3)(scores[part]).tolist()
    partition.begin_epoch()  # four samples are still unknown
    assert (partition.table_portion == -1).all()
    part = index[8:]
    assert partition(scores[part], part).tolist() == Partitioner(3)(scores[part]).tolist()
    partition.begin_epoch()
    expected = balanced_assignment(scores).expert
    assert partition.table_portion.tolist() == expected.tolist()
    for part in index.flip(0).split(5):
        assert partition(scores_of(len(part), 3), part).tolist() == expected[part].tolist()


def test_dataset_scope_partitions_by_the_last_scores():
    partition, scores = dataset_partition()
    everything = torch.arange(12)
    partition(scores_of(12, 3, seed=5), everything)
    partition(scores, everything)
    partition.begin_epoch()
    assert partition.table_portion.tolist() == balanced_assignment(scores).expert.tolist()


def test_dataset_scope_counts_the_last_of_repeated_samples():
    partition = Partitioner(2, "dataset", num_samples=2)
    index = torch.tensor([1, 0, 1, 0, 1])
    scores = scores_of(5, 2)
    partition(scores, index)
    assert torch.equal(partition.table, scores[[3, 4]])


def test_dataset_scope_takes_an_empty_batch():
    partition, _ = dataset_partition()
    assert partition(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).tolist() == []


def test_shares_hold_in_every_scope():
    shares = torch.tensor([1.0, 3.0])
    queue = Partitioner(2, "queue", queue_size=8, shares=shares)
    assert loads(queue(scores_of(8, 2)), 2) == [2, 6]
    dataset = Partitioner(2, "dataset", num_samples=8, shares=shares)
    dataset(scores_of(8, 2), torch.arange(8))
    dataset.begin_epoch()
    assert loads(dataset.table_portion, 2) == [2, 6]


@pytest.mark.parametrize("scope", ["batch", "queue", "dataset"])
def test_state_round_trip_resumes_identically(scope):
    def fresh():
        return Partitioner(3, scope, queue_size=6, num_samples=12)

    def run(partition, epochs):
        portions = []
        for epoch in epochs:
            partition.begin_epoch()
            order = torch.randperm(12, generator=torch.manual_seed(epoch))
            for step, part in enumerate(order.split(4)):
                portions += partition(scores_of(4, 3, seed=10 * epoch + step), part).tolist()
        return portions

    first = fresh()
    run(first, [0, 1])
    state = copy.deepcopy(first.state_dict())
    resumed = fresh()
    resumed.load_state_dict(state)
    assert run(resumed, [2, 3]) == run(first, [2, 3])
    if scope != "batch":  # the state matters
        assert run(fresh(), [2, 3]) != run(first, [2, 3])


@pytest.mark.parametrize("scope", ["queue", "dataset"])
def test_a_module_cast_to_half_precision_still_partitions(scope):
    partition = Partitioner(2, scope, queue_size=4, num_samples=4).to(torch.float16)
    for _ in range(2):
        partition.begin_epoch()
        assert loads(partition(scores_of(4, 2), torch.arange(4)), 2) == [2, 2]


@pytest.mark.parametrize("scope", ["batch", "queue", "dataset"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_are_an_error_and_leave_no_trace(scope, bad):
    partition = Partitioner(2, scope, queue_size=4, num_samples=4)
    partition(scores_of(2, 2), torch.arange(2))
    before = copy.deepcopy(partition.state_dict())
    with pytest.raises(ValueError, match=r"scores hold 1 values that are not finite of [48]"):
        partition(torch.tensor([[0.0, bad], [0.0, 1.0]]), torch.tensor([2, 3]))
    for name, value in partition.state_dict().items():
        torch.testing.assert_close(value, before[name], equal_nan=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_experts": 0}, "num_experts must be at least 1, got 0"),
        ({"scope": "queue"}, "scope 'queue' needs queue_size of at least 1, got 0"),
        ({"scope": "dataset"}, "scope 'dataset' needs num_samples of at least 1, got 0"),
        ({"shares": torch.ones(3)}, "3 shares for 2 experts; give one each"),
        ({"shares": -torch.ones(2)}, "shares must be finite, non-negative and not all zero"),
    ],
)
def test_impossible_partitioners_are_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        Partitioner(**{"num_experts": 2, **arguments})


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_scope_is_an_error():
    with pytest.raises(ValueError, match="unknown scope 'bach'; known: 'batch', 'queue', 'datas"):
        Partitioner(2, "bach")


def test_dataset_scope_needs_an_index():
    with pytest.raises(ValueError, match="scope 'dataset' needs each sample's index"):
        dataset_partition()[0](scores_of(2, 3))


@pytest.mark.usefixtures("unchecked")
def test_dataset_scope_needs_one_index_per_sample():
    with pytest.raises(ValueError, match="1 indices for 2 samples; give one each"):
        dataset_partition()[0](scores_of(2, 3), torch.tensor([0]))


@pytest.mark.parametrize("index", [[0, 12], [-1, 11]])
def test_an_index_outside_the_training_set_is_an_error(index):
    message = rf"samples {index[0]}..{index[1]}, but the training set has 12 \(0..11\)"
    with pytest.raises(ValueError, match=message):
        dataset_partition()[0](scores_of(2, 3), torch.tensor(index))
