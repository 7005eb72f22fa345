"""Families of classes: what is confused stays together, in equal parts; labels that follow them."""

import itertools

import pytest
import torch
from torch.nn.functional import cross_entropy

from coe_core import CoTrainingObjective, FamilyLabels, confusion_families


def kept_together(confusion: torch.Tensor, family: torch.Tensor) -> float:
    same = (family[:, None] == family).double()
    return float((confusion.double() * same).sum() - confusion.double().diagonal().sum())


def planted(c: int, k: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A confusion with k families of c / k classes, and the families."""
    family = torch.arange(c)[torch.randperm(c, generator=generator)] % k
    same = family[:, None] == family
    return same + 0.3 * torch.rand(c, c, generator=generator), family


@pytest.mark.parametrize(("c", "k"), [(4, 2), (20, 4), (21, 3), (100, 10)])
def test_planted_families_are_found(c, k):
    confusion, family = planted(c, k, torch.Generator().manual_seed(c))
    families = confusion_families(confusion, k)
    assert ((families[:, None] == families) == (family[:, None] == family)).all()


def test_best_of_all_balanced_partings_of_six_classes():
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        confusion, _ = planted(6, 2, generator)
        together = kept_together(confusion, confusion_families(confusion, 2))
        best = max(
            kept_together(confusion, torch.tensor([j in members for j in range(6)]).long())
            for members in itertools.combinations(range(6), 3)
        )
        assert together == pytest.approx(best)


@pytest.mark.parametrize(("c", "k"), [(7, 3), (10, 4), (5, 5), (3, 1)])
def test_equal_parts_also_where_k_does_not_divide_c(c, k):
    sizes = torch.bincount(confusion_families(torch.rand(c, c), k), minlength=k)
    assert sizes.max() - sizes.min() <= 1
    assert sizes.sum() == c


def test_order_of_classes_and_scale_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    confusion, _ = planted(12, 3, generator)
    order = torch.randperm(12, generator=generator)
    family, moved = (
        confusion_families(confusion, 3),
        confusion_families(50 * confusion[order][:, order], 3),
    )
    assert ((family[order][:, None] == family[order]) == (moved[:, None] == moved)).all()


def test_classes_that_never_came_up_have_a_family():
    confusion = torch.zeros(6, 6)
    confusion[:2, :2] = 1
    family = confusion_families(confusion, 3)
    assert family[0] == family[1]
    assert torch.bincount(family).tolist() == [2, 2, 2]


def test_refusals():
    with pytest.raises(ValueError, match="3 classes cannot be parted into 4 families"):
        confusion_families(torch.ones(3, 3), 4)
    with pytest.raises(ValueError, match="3 classes cannot be parted into 4 families"):
        FamilyLabels(3, 4)
    with pytest.raises(ValueError, match="1 values of 9 that are negative or not finite"):
        confusion_families(torch.ones(3, 3) - torch.diag(torch.tensor([2.0, 0, 0])), 2)


def test_labels_before_and_after_settling():
    labels = FamilyLabels(4, 2)
    rough = torch.tensor([[3.0, 2, 0, 0], [2, 3, 0, 0], [0, 0, 3, 2], [0, 0, 2, 3]])
    labels.observe(rough, torch.eye(4))  # targets per class, as MixUp has them
    assert not labels.settled
    assert (labels(torch.arange(4)) == 0).all()
    labels.settle()
    assert labels.settled
    mixed = torch.tensor([[0.7, 0.0, 0.3, 0.0]])
    torch.testing.assert_close(labels(mixed), torch.tensor([[0.7, 0.3]]))
    before = labels.family.clone()
    labels.observe(-rough, torch.arange(4))
    labels.settle()  # known: no effect
    assert (labels.family == before).all()
    copy = FamilyLabels(4, 2)
    copy.load_state_dict(labels.state_dict())
    assert copy.settled


def test_objective_takes_labels_as_they_are():
    """Cross-entropy to them, without (V1); a row of zeros has no part in it."""
    generator = torch.Generator().manual_seed(0)
    selection = torch.randn(5, 3, generator=generator)
    evidence = -torch.rand(5, 3, generator=generator)
    target = torch.tensor([0, 1, 2, 2, 0])
    labels = torch.eye(3)[target]
    labels[4] = 0
    objective = CoTrainingObjective(3, variance_weighting=True)
    loss = objective(torch.rand(5), -evidence, evidence, selection, progress=0.5, labels=labels)
    expected = cross_entropy(selection[:4], target[:4], reduction="sum") / 5
    torch.testing.assert_close(loss.selection, expected)
