"""What portions follow, and the experts of known groups."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coe_core import PortionCounts, experts_of_groups, handed_to_evidence, shared_information

divisions = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=60)


@pytest.mark.slow
@given(divisions)
def test_as_scikit_learn_has_it(pairs):
    counts = torch.zeros(4, 6)
    for a, b in pairs:
        counts[a, b] += 1
    first, second = zip(*pairs, strict=True)
    from sklearn.metrics import normalized_mutual_info_score  # takes two seconds

    expected = normalized_mutual_info_score(first, second, average_method="min")
    if len(set(first)) == 1 or len(set(second)) == 1:
        expected = 0.0  # where nothing is divided, scikit-learn has 0 or 1 by chance of convention
    assert shared_information(counts) == pytest.approx(expected, abs=1e-6)
    assert shared_information(counts.T) == pytest.approx(shared_information(counts))


def test_no_samples_and_bad_counts():
    assert shared_information(torch.zeros(2, 2)) == 0.0
    with pytest.raises(ValueError, match="counts hold 1 values of 4 that are negative"):
        shared_information(torch.tensor([[1, -1], [0, 0]]))


def test_counts_over_an_epoch():
    counts = PortionCounts(2, 3)
    counts.observe(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]))
    counts.observe(torch.tensor([1, 0]), torch.tensor([2, -1]))
    assert counts.counts.tolist() == [[1, 1, 0], [0, 0, 2]]
    assert counts.follow == pytest.approx(1)
    counts.observe(torch.tensor([1, 1]), torch.tensor([0, 1]))
    assert 0 < counts.follow < 1
    counts.begin_epoch()
    assert counts.follow == 0


def test_experts_of_groups():
    assert experts_of_groups(torch.tensor([1, 9, 3]), 3).tolist() == [0, 1, 2]
    sizes = torch.tensor([7, 1, 6, 2, 5, 3])
    experts = experts_of_groups(sizes, 2)
    load = [int(sizes[experts == j].sum()) for j in (0, 1)]
    assert load == [12, 12]
    with pytest.raises(ValueError, match="2 known groups for 3 experts"):
        experts_of_groups(torch.tensor([1, 2]), 3)


def test_evidence_takes_over_sample_by_sample_for_good():
    index = torch.arange(1000)
    known = index % 3
    before = torch.zeros(1000, dtype=torch.bool)
    for part in (0.0, 0.25, 0.5, 1.0):
        handed = handed_to_evidence(known, index, part)
        released = handed < 0
        assert abs(float(released.float().mean()) - part) < 0.005
        assert (released | ~before).all()  # who is released stays so
        assert torch.equal(handed[~released], known[~released])
        before = released
    with pytest.raises(ValueError, match=r"part must be in \[0, 1\], got 1.5"):
        handed_to_evidence(known, index, 1.5)
