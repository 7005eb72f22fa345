"""The balanced transportation problem: by hand, by its certificate, and against scipy and POT."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment

from coe_core.transport import (
    Assignment,
    _as_matrix,
    balanced_assignment,
    duality_gap,
    even_demand,
)

ROOT = Path(__file__).parents[2]


KINDS = ("random", "skewed", "duplicated", "nearly tied", "all equal", "grid", "sorted", "offset")


def make_scores(kind: str, n: int, k: int, seed: int = 0) -> np.ndarray:
    """Scores of one kind; each kind is hard for another reason."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, k))
    if kind == "skewed":
        logits[:, : max(1, k // 8)] += 4
    if kind == "duplicated":
        logits = logits[rng.integers(0, min(n, 8), n)] if n else logits
    if kind == "nearly tied":
        return -np.log(k) + 1e-8 * logits
    if kind == "all equal":
        return np.full((n, k), -np.log(k))
    if kind == "grid":  # as if rounded: many exact ties, none of them everywhere
        return np.round(logits)
    if kind == "sorted":  # the strata of the sub-sample see very different rows
        logits = np.sort(logits, axis=0)
    if kind == "offset":  # a constant per row and per column that dwarf the differences
        return logits + 1e4 * rng.standard_normal((n, 1)) + 1e3 * rng.standard_normal(k)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def random_demand(n: int, k: int, seed: int) -> np.ndarray:
    """Any demand that sums to n, some of it zero."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(k, 0.5))
    return rng.multinomial(n, share)


def check(scores: np.ndarray, demand: np.ndarray, best: Assignment) -> None:
    """The certificate: feasible, complementary slackness, zero duality gap."""
    n, k = scores.shape
    assert best.expert.dtype == np.int64
    assert best.expert.shape == (n,)
    assert best.prices.dtype == np.float64
    assert best.prices.shape == (k,)
    assert isinstance(best.objective, float)
    assert np.bincount(best.expert, minlength=k).tolist() == demand.tolist()
    assert np.isfinite(best.prices).all()
    scores = scores.astype(np.float64)
    size = max(1.0, np.abs(scores).max(initial=0), np.abs(best.prices).max())
    chosen = scores[np.arange(n), best.expert]
    value = scores - best.prices
    loss = value.max(1) - value[np.arange(n), best.expert]
    assert loss.max(initial=0) <= 1e-14 * size
    assert best.objective == pytest.approx(chosen.sum(), rel=1e-12, abs=1e-12 * size)
    assert demand @ best.prices == pytest.approx(0, abs=1e-13 * size * max(n, 1))
    assert best.objective == pytest.approx(value.max(1).sum(), abs=1e-13 * size * max(n, 1))
    assert duality_gap(scores, best) <= 1e-14 * size * max(n, 1)


def scipy_optimum(scores: np.ndarray, demand: np.ndarray) -> float:
    """An independent optimum: every expert is repeated as often as it is demanded."""
    columns = np.repeat(np.arange(len(demand)), demand)
    rows, places = linear_sum_assignment(scores[:, columns], maximize=True)
    return scores[rows, columns[places]].sum()


def test_two_samples_want_the_same_expert():
    # Sample 0 gains 5 from expert 0 and sample 1 gains 3, so sample 1 gives way.
    best = balanced_assignment([[5.0, 0.0], [4.0, 1.0]])
    assert best.expert.tolist() == [0, 1]
    assert best.objective == 6.0
    assert 3.0 <= best.prices[0] - best.prices[1] <= 5.0


def test_a_chain_of_moves():
    # Both samples at 0 would lose 9 at expert 2; by way of expert 1 the loss is 1 + 1.
    scores = np.array([[10.0, 9.0, 1.0], [10.0, 5.0, 1.0], [0.0, 10.0, 9.0]])
    best = balanced_assignment(scores)
    assert best.expert.tolist() == [1, 0, 2]
    assert best.objective == 28.0


def test_all_equal_has_zero_prices():
    best = balanced_assignment(np.full((10, 4), -1.5))
    assert best.prices.tolist() == [0.0] * 4
    assert np.bincount(best.expert).tolist() == [3, 3, 2, 2]
    assert best.objective == -15.0


def test_even_demand_gives_the_rest_to_the_first():
    assert even_demand(11, 4).tolist() == [3, 3, 3, 2]
    assert even_demand(2, 4).tolist() == [1, 1, 0, 0]
    assert even_demand(0, 1).tolist() == [0]


def test_duality_gap_counts_what_is_lost():
    scores = np.array([[5.0, 0.0], [4.0, 1.0]])
    worst = Assignment(np.array([1, 0]), np.array([2.0, -2.0]), 4.0)
    assert duality_gap(scores, worst) == 2.0  # each sample has 2 where it could have 3
    assert duality_gap(scores, worst._replace(prices=np.zeros(2))) == 5.0  # 5 + 4 - 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 8), (40, 1), (100, 3), (300, 16), (1000, 7)])
def test_certificate_and_scipy(kind: str, n: int, k: int):
    for seed in range(3):
        scores = make_scores(kind, n, k, seed)
        for demand in (even_demand(n, k), random_demand(n, k, seed)):
            best = balanced_assignment(scores, demand)
            check(scores, demand, best)
            if n <= 300:
                optimum = scipy_optimum(scores, demand)
                assert best.objective == pytest.approx(optimum, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_certificate_when_samples_are_left_out(kind: str, dtype: type):
    # With many samples only the near-ties are gathered, after several sub-samples.
    for n, k in ((5000, 16), (20011, 5), (50000, 12)):
        scores = make_scores(kind, n, k, n).astype(dtype)
        for demand in (even_demand(n, k), random_demand(n, k, n)):
            check(scores, demand, balanced_assignment(scores, demand))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_objective_equals_that_of_pot(kind: str):
    n, k = 1024, 16
    scores = make_scores(kind, n, k, 5)
    demand = even_demand(n, k)
    import ot  # takes two seconds

    plan = ot.emd(np.ones(n), demand.astype(float), -scores, numItermax=10_000_000)
    optimum = (plan * scores).sum()
    assert balanced_assignment(scores).objective == pytest.approx(optimum, rel=1e-10)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores from few values (ties) or many, with any demand."""
    n, k = draw(st.integers(0, 12)), draw(st.integers(1, 5))
    few = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 1.0 + 1e-9])
    many = st.floats(-1e3, 1e3, allow_subnormal=False)
    scores = draw(hnp.arrays(np.float64, (n, k), elements=draw(st.sampled_from([few, many]))))
    expert = draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n))
    return scores, np.bincount(np.array(expert, np.int64), minlength=k)


@settings(max_examples=300, deadline=None)
@given(problems())
def test_any_problem_is_solved_exactly(problem: tuple[np.ndarray, np.ndarray]):
    scores, demand = problem
    best = balanced_assignment(scores, demand)
    check(scores, demand, best)
    assert best.objective == pytest.approx(scipy_optimum(scores, demand), rel=1e-12, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 10.0, 1e6, 1e308]))
def test_from_any_prices_the_optimum_is_the_same(
    problem: tuple[np.ndarray, np.ndarray], seed, size
):
    scores, demand = problem
    best = balanced_assignment(scores, demand)
    start = np.random.default_rng(seed).uniform(-1, 1, scores.shape[1]) * size
    kept = start.copy()
    found = balanced_assignment(scores, demand, best.prices + start if size < 1e300 else start)
    assert (start == kept).all()
    assert (np.bincount(found.expert, minlength=len(demand)) == demand).all()
    scale = 1 + np.abs(scores).max(initial=0)
    assert found.objective == pytest.approx(best.objective, abs=1e-9 * scale * max(len(scores), 1))
    assert duality_gap(scores, found) <= 1e-9 * scale * max(len(scores), 1)


def test_prices_to_start_from_that_are_none():
    scores = np.eye(3)
    for prices, shown in (([0.0, 1.0], "[0.0, 1.0]"), ([0.0, 1.0, np.nan], "[0.0, 1.0, nan]")):
        with pytest.raises(
            ValueError, match="one finite number for each of 3 experts, got"
        ) as error:
            balanced_assignment(scores, prices=prices)
        assert str(error.value).endswith(shown)


@settings(max_examples=100, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_permuting_changes_no_objective(problem: tuple[np.ndarray, np.ndarray], random):
    scores, demand = problem
    n, k = scores.shape
    rows, columns = random.sample(range(n), n), random.sample(range(k), k)
    best = balanced_assignment(scores, demand)
    permuted = balanced_assignment(scores[rows][:, columns], demand[columns])
    assert permuted.objective == pytest.approx(best.objective, rel=1e-12, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_row_and_column_constants_only_add(problem: tuple[np.ndarray, np.ndarray], seed: int):
    scores, demand = problem
    rng = np.random.default_rng(seed)
    row, column = rng.normal(size=len(scores)), rng.normal(size=len(demand))
    best = balanced_assignment(scores, demand)
    shifted = balanced_assignment(scores + row[:, None] + column, demand)
    expected = best.objective + row.sum() + demand @ column
    assert shifted.objective == pytest.approx(expected, rel=1e-11, abs=1e-8)
    again = scores[np.arange(len(scores)), shifted.expert].sum()
    assert again == pytest.approx(best.objective, rel=1e-11, abs=1e-8)


@pytest.mark.parametrize("n", [60, 4000])
def test_a_unique_optimum_is_equivariant(n: int):
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((n, 6))  # continuous: unique with probability 1
    rows, columns = rng.permutation(n), rng.permutation(6)
    best = balanced_assignment(scores, even_demand(n, 6))
    permuted = balanced_assignment(scores[rows][:, columns], even_demand(n, 6)[columns])
    assert columns[permuted.expert].tolist() == best.expert[rows].tolist()
    shifted = balanced_assignment(scores + rng.standard_normal((n, 1)) + rng.standard_normal(6))
    assert shifted.expert.tolist() == best.expert.tolist()


def test_deterministic():
    for kind in KINDS:
        scores = make_scores(kind, 5000, 8)
        first, second = balanced_assignment(scores), balanced_assignment(scores.copy())
        assert first.expert.tolist() == second.expert.tolist()
        assert first.prices.tolist() == second.prices.tolist()


def test_no_samples():
    best = balanced_assignment(np.empty((0, 3)))
    assert best.expert.shape == (0,)
    assert best.prices.tolist() == [0.0, 0.0, 0.0]
    assert best.objective == 0.0


def test_zero_demand_is_priced_out():
    scores = np.array([[9.0, 0.0, 1.0], [8.0, 3.0, 0.0], [7.0, 1.0, 2.0]])
    best = balanced_assignment(scores, [0, 2, 1])
    check(scores, np.array([0, 2, 1]), best)
    assert best.expert.tolist() == [2, 1, 1] or best.objective == 5.0


def test_one_expert_takes_all():
    scores = make_scores("random", 5000, 4)
    demand = np.array([0, 5000, 0, 0])
    check(scores, demand, balanced_assignment(scores, demand))


@pytest.mark.parametrize("magnitude", [1e-30, 1e-9, 1e6, 1e30])
def test_any_unit(magnitude: float):
    for kind in KINDS:
        scores = make_scores(kind, 3000, 6) * magnitude
        demand = even_demand(3000, 6)
        best = balanced_assignment(scores, demand)
        assert np.bincount(best.expert, minlength=6).tolist() == demand.tolist()
        assert duality_gap(scores, best) <= 1e-11 * np.abs(scores).max()


def test_scores_of_very_different_sizes():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((3000, 6)) * 10.0 ** rng.uniform(-8, 8, (3000, 1))
    check(scores, even_demand(3000, 6), balanced_assignment(scores))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.int64, np.uint8, np.bool_])
def test_other_dtypes_equal_float64(dtype: type):
    scores = (10 * np.random.default_rng(0).random((3000, 4))).astype(dtype)
    best = balanced_assignment(scores)
    check(scores, even_demand(3000, 4), best)
    assert best.objective == balanced_assignment(scores.astype(np.float64)).objective


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors(dtype: torch.dtype):
    tensor = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor.requires_grad_()
    best = balanced_assignment(tensor, torch.full((4,), 125))
    check(tensor.detach().double().numpy(), even_demand(500, 4), best)
    assert duality_gap(tensor, best) <= 1e-11


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensor_on_gpu():
    tensor = torch.randn(500, 4, device="cuda")
    check(tensor.cpu().numpy(), even_demand(500, 4), balanced_assignment(tensor))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_are_not_copied(dtype: type):
    scores = make_scores("random", 65_536, 4).astype(dtype)
    assert np.shares_memory(_as_matrix(scores), scores)
    assert np.shares_memory(_as_matrix(torch.from_numpy(scores)), scores)
    assert not np.shares_memory(_as_matrix(scores.astype(np.int32)), scores)
    balanced_assignment(scores)  # compiled
    tracemalloc.start()
    try:
        best = balanced_assignment(scores)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Experts, gaps and rows are 8 bytes a sample each, the rest is sub-samples.
    assert peak < 3 * 8 * len(scores) + scores.nbytes / 2 + 200_000
    assert kept < best.expert.nbytes + 10_000  # what is returned


def test_layouts_are_not_changed():
    scores = make_scores("random", 400, 6)
    best = balanced_assignment(scores)
    frozen = scores.copy()
    frozen.flags.writeable = False
    layouts = (
        np.asfortranarray(scores),
        np.repeat(scores, 2, 0)[::2],
        scores.astype(">f8"),
        scores.tolist(),
        frozen,
    )
    for layout in layouts:
        same = balanced_assignment(layout)
        assert same.expert.tolist() == best.expert.tolist()
    assert (frozen == scores).all()
    assert balanced_assignment(scores, np.full(6, 400 / 6).round() - [1, 1, 0, 0, 0, 0]).objective


@pytest.mark.parametrize(
    ("scores", "demand", "message"),
    [
        (np.zeros((2, 2)), [2, 2], r"demand sums to 4 over 2 experts, but there are 2 samples"),
        (np.zeros((2, 2)), [1], r"one entry for each of 2 experts, got \(1,\)"),
        (np.zeros((2, 2)), [3, -1], r"must not be negative, got -1 for expert 1"),
        (np.zeros((2, 2)), [0.5, 1.5], r"must be integers, got \[0\.5, 1\.5\]"),
        (np.zeros((2, 2)), [np.nan, 2], r"must be integers"),
        (np.zeros((2, 2)), ["1", "1"], r"must be integers"),
        (np.zeros(3), None, r"scores must be \[n, k\] with k >= 1 experts, got shape \(3,\)"),
        (np.zeros((3, 0)), None, r"got shape \(3, 0\)"),
        (np.zeros((2, 2), complex), None, r"real numbers, got dtype complex128"),
        (np.full((2, 2), 1e200), None, r"scores of size 1e\+200 overflow"),
    ],
)
def test_errors(scores: np.ndarray, demand: list | None, message: str):
    with pytest.raises(ValueError, match=message):
        balanced_assignment(scores, demand)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [5, 20000])
def test_scores_that_are_not_finite(bad: float, n: int):
    scores = make_scores("random", n, 8)
    scores[1, 2] = scores[3, 0] = scores[n - 1, 7] = bad
    message = rf"hold 3 values that are not finite of {8 * n} \(first at sample 1, expert 2\)"
    with pytest.raises(ValueError, match=message):
        balanced_assignment(scores)


def test_errors_of_the_helpers():
    with pytest.raises(ValueError, match="cannot split -1 samples over 2 experts"):
        even_demand(-1, 2)
    with pytest.raises(ValueError, match="cannot split 1 samples over 0 experts"):
        even_demand(1, 0)
    with pytest.raises(ValueError, match=r"scores are \(3, 2\), but the assignment has experts"):
        duality_gap(np.zeros((3, 2)), balanced_assignment(np.zeros((2, 2))))


def test_a_quantile_is_numpys():
    from coe_core._transport_kernels import quantile

    draw = np.random.default_rng(0)
    for size in (1, 2, 3, 9, 511, 512, 700, 1500):
        for gap in (draw.random(size), draw.integers(0, 3, size) / 2, np.full(size, np.inf)):
            step = max(1, size // 512)
            ordered = np.sort(gap[::step])
            for rank in (0, 1, size // 3, size):
                assert quantile(gap, rank) == ordered[min(len(ordered) - 1, rank // step + 1)]
