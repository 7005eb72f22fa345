"""Balanced clusters of features, and the portions they are until evidence takes over."""

import itertools

import pytest
import torch

from coe_core import ClusterPortions, balanced_clusters, balanced_kmeans


def blobs(k: int, each: int, generator: torch.Generator, d: int = 3) -> tuple[torch.Tensor, ...]:
    """Points around k far centres, shuffled, and the blob of each."""
    blob = torch.arange(k).repeat_interleave(each)[torch.randperm(k * each, generator=generator)]
    centres = 20 * torch.randn(k, d, generator=generator)
    return centres[blob] + torch.randn(k * each, d, generator=generator), blob


def same_parts(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a[:, None] == a, b[:, None] == b)


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_blobs_of_equal_size_are_found(k):
    points, blob = blobs(k, 20, torch.Generator().manual_seed(k))
    clusters = balanced_clusters(points, k)
    assert same_parts(clusters.cluster, blob)
    assert torch.equal(clusters.cluster, balanced_clusters(points, k).cluster)  # deterministic


def test_balanced_where_the_data_are_not():
    points = torch.cat([torch.zeros(90, 1), 10 * torch.ones(10, 1)])
    assert torch.bincount(balanced_clusters(points, 2).cluster).tolist() == [50, 50]


def test_prices_tell_the_cluster_of_every_point():
    points = torch.randn(101, 4, generator=torch.Generator().manual_seed(0))
    clusters = balanced_clusters(points, 3)
    scores = (
        points.double() @ clusters.centres.T - 0.5 * (clusters.centres**2).sum(1) - clusters.prices
    )
    best = scores.amax(1)
    chosen = scores[torch.arange(101), clusters.cluster]
    assert torch.allclose(chosen, best)
    assert sorted(torch.bincount(clusters.cluster).tolist()) == [33, 34, 34]


def test_as_tight_as_the_best_of_all_balanced_partings():
    points = torch.randn(8, 2, generator=torch.Generator().manual_seed(1)).double()

    def spread(members):
        side = torch.tensor([i in members for i in range(8)])
        parts = points[side], points[~side]
        return sum(float(((part - part.mean(0)) ** 2).sum()) for part in parts)

    best = min(spread(members) for members in itertools.combinations(range(8), 4))
    cluster = balanced_clusters(points, 2).cluster
    assert spread(set(torch.nonzero(cluster == 0)[:, 0].tolist())) <= 1.1 * best


def test_refusals_of_the_clustering():
    with pytest.raises(ValueError, match="2 points cannot be parted into 3 clusters"):
        balanced_clusters(torch.zeros(2, 1), 3)
    with pytest.raises(ValueError, match="1 points cannot be parted into 2 clusters"):
        balanced_kmeans(torch.zeros(1, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="not finite in 1 of 3"):
        balanced_clusters(torch.tensor([[0.0], [torch.nan], [1.0]]), 2)
    with pytest.raises(ValueError, match="num_experts must be a whole number"):
        balanced_clusters(torch.zeros(2, 1), 0)


def test_equal_points_are_parted_all_the_same():
    assert torch.bincount(balanced_clusters(torch.ones(6, 2), 3).cluster).tolist() == [2, 2, 2]


def settled(k: int = 2, each: int = 10) -> tuple[ClusterPortions, torch.Tensor, torch.Tensor]:
    points, blob = blobs(k, each, torch.Generator().manual_seed(7))
    portions = ClusterPortions(k, points.shape[1], len(points))
    for part in points.split(5):
        portions.observe(part)
    portions.settle()
    return portions, points, blob


def test_scale_of_a_feature_does_not_matter():
    _, points, _ = settled()
    scale = torch.tensor([1e-3, 1.0, 1e4])
    portions = ClusterPortions(2, 3, len(points))
    portions.observe(points * scale)
    portions.settle()
    first = settled()[0]
    index = torch.arange(len(points))
    assert same_parts(portions(points * scale, index), first(points, index))


def test_a_sample_keeps_its_cluster_when_features_move():
    portions, points, blob = settled()
    index = torch.arange(len(points))
    known = portions(points, index)
    assert same_parts(known, blob)
    assert torch.equal(portions(-points, index), known)
    assert torch.equal(portions(points[:0], index[:0]), index[:0])


def test_state_is_saved_with_the_module():
    portions, points, _ = settled()
    index = torch.arange(len(points))
    known = portions(points[:10], index[:10])
    other = ClusterPortions(2, 3, len(points))
    assert not other.settled
    other.load_state_dict(portions.state_dict())
    assert other.settled
    assert torch.equal(other(-points[:10], index[:10]), known)
    assert torch.equal(other(points, index), portions(points, index))


def test_settling_twice_changes_nothing():
    portions, points, _ = settled()
    centres = portions.centres.clone()
    portions.observe(torch.randn_like(points))
    portions.settle()
    assert torch.equal(portions.centres, centres)


def test_a_constant_feature_is_no_trouble():
    portions = ClusterPortions(2, 2, 4)
    portions.observe(torch.tensor([[0.0, 3], [0.1, 3], [5.0, 3], [5.1, 3]]))
    portions.settle()
    assert portions.settled


def test_refusals_of_cluster_portions():
    with pytest.raises(ValueError, match="num_features must be a whole number"):
        ClusterPortions(2, 0, 5)
    portions = ClusterPortions(3, 1, 5)
    portions.observe(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="features of 2 samples were observed, for 3 clusters"):
        portions.settle()
    portions.observe(torch.rand(3, 1))
    portions.settle()
    with pytest.raises(ValueError, match=r"index holds samples 5..5, but the training set has 5"):
        portions(torch.zeros(1, 1), torch.tensor([5]))
