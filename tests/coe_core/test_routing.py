"""Selection and grouping: by hand, as a partition of the rows, and errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coe_core import group_rows, select_expert


def test_selection_is_argmax_and_ties_go_to_the_lowest_number():
    logits = torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert select_expert(logits).tolist() == [1, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_selection_in_any_precision(dtype):
    assert select_expert(torch.tensor([[0.0, 1.0]], dtype=dtype)).tolist() == [1]


def test_infinite_logits_can_be_selected():
    assert select_expert(torch.tensor([[0.0, torch.inf], [-torch.inf, 0.0]])).tolist() == [1, 1]


def test_nan_logits_are_an_error():
    with pytest.raises(ValueError, match="selection_logits hold NaN in 1 of 2 samples"):
        select_expert(torch.tensor([[0.0, torch.nan], [0.0, 1.0]]))


def test_grouping_by_hand():
    groups = group_rows(
        torch.tensor([False, True, False, False, True]), torch.tensor([2, 0, 0, 2, 1]), 4
    )
    assert groups.exits.tolist() == [1, 4]
    assert {j: rows.tolist() for j, rows in groups.by_expert.items()} == {0: [2], 2: [0, 3]}


@given(
    st.integers(1, 6).flatmap(
        lambda k: st.tuples(
            st.just(k), st.lists(st.tuples(st.booleans(), st.integers(0, k - 1)), max_size=30)
        )
    )
)
def test_every_row_is_in_exactly_one_place(case):
    k, rows = case
    exits = torch.tensor([e for e, _ in rows], dtype=torch.bool)
    expert = torch.tensor([j for _, j in rows], dtype=torch.long)
    groups = group_rows(exits, expert, k)
    assert groups.exits.tolist() == [i for i, (e, _) in enumerate(rows) if e]
    for j in range(k):
        expected = [i for i, (e, chosen) in enumerate(rows) if not e and chosen == j]
        assert groups.by_expert.get(j, torch.tensor([])).tolist() == expected
    assert all(len(group) for group in groups.by_expert.values())


def test_the_selection_of_exits_is_not_looked_at():
    groups = group_rows(torch.tensor([True, True, False]), torch.tensor([-1, 9, 0]), 2)
    assert groups.exits.tolist() == [0, 1]
    assert groups.by_expert[0].tolist() == [2]


@pytest.mark.parametrize("wrong", [-7, -1, 2, 50])
def test_unknown_expert_is_an_error(wrong):
    low, high = min(wrong, 1), max(wrong, 1)
    message = rf"selected_expert must be in \[0, 2\), but 1 of 2 are not; .* {low} to {high}"
    with pytest.raises(ValueError, match=message):
        group_rows(torch.tensor([True, False, False]), torch.tensor([0, 1, wrong]), 2)
