"""Portions by what samples look like: balanced clusters of the delegator's features."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from coe_core._checks import whole
from coe_core.distributed import gather_rows
from coe_core.transport import balanced_assignment

_STARTS = 8  # of the clustering, from different samples
_ROUNDS = 20
_SAMPLES = 4096  # whose features are remembered: enough for the centres of a few dozen experts


class Clusters(NamedTuple):
    """Balanced clusters: a point belongs to argmax_j points @ centres_j - |centres_j|^2 / 2 - prices_j."""

    cluster: Int[Tensor, " n"]
    centres: Float[Tensor, "k d"]
    prices: Float[Tensor, " k"]  # what balance costs, see `Assignment`
    spread: float  # mean squared distance to the centres


def balanced_kmeans(points: Float[Tensor, "n d"], centres: Float[Tensor, "k d"]) -> Clusters:
    """K-means from given centres whose assignment is the balanced transportation problem (W1). OURS.

    Args:
        points: at least as many as centres.
        centres: to begin from.

    Raises:
        ValueError: fewer points than centres.

    Example:
        >>> points = torch.tensor([[0.0], [0.1], [0.2], [5.0]])
        >>> balanced_kmeans(points, points[[0, 3]]).cluster.tolist()  # two each
        [0, 0, 1, 1]
    """
    if len(points) < len(centres):
        raise ValueError(f"{len(points)} points cannot be parted into {len(centres)} clusters")
    points, centres = points.detach().cpu().double(), centres.detach().cpu().double()
    cluster = torch.empty(0)
    for _ in range(_ROUNDS):
        assignment = balanced_assignment(_scores(points, centres))
        new = torch.from_numpy(assignment.expert)
        if torch.equal(new, cluster):
            break
        cluster = new
        used = centres  # the assignment and its prices belong to these
        centres = torch.stack([points[cluster == j].mean(0) for j in range(len(centres))])
    spread = float(((points - used[cluster]) ** 2).sum(1).mean())
    return Clusters(cluster.long(), used, torch.from_numpy(assignment.prices), spread)


def balanced_clusters(points: Float[Tensor, "n d"], num_experts: int) -> Clusters:
    """Part points into k clusters of equal size: `balanced_kmeans`, the tightest of several starts. OURS.

    Deterministic: the starts are drawn with a seed of their own.

    Args:
        points: n of them, at least k.
        num_experts: k.

    Raises:
        ValueError: fewer points than experts, or points that are not finite.

    Example:
        >>> points = torch.tensor([[0.0], [5.0], [0.1], [5.1]])
        >>> cluster = balanced_clusters(points, 2).cluster
        >>> bool(cluster[0] == cluster[2] != cluster[1])
        True
    """
    k = whole("num_experts", num_experts, least=1)
    if len(points) < k:
        raise ValueError(f"{len(points)} points cannot be parted into {k} clusters")
    bad = int((~points.isfinite()).any(1).sum())
    if bad:
        raise ValueError(f"points hold values that are not finite in {bad} of {len(points)}")
    generator = torch.Generator().manual_seed(0)
    tries = [
        balanced_kmeans(points, points[_far_apart(points, k, generator)]) for _ in range(_STARTS)
    ]
    return min(tries, key=lambda clusters: clusters.spread)


def _far_apart(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Rows to begin from: each drawn with its squared distance to those before (k-means++)."""
    points = points.detach().cpu().double()
    rows = [int(torch.randint(len(points), (1,), generator=generator))]
    distance = torch.full((len(points),), math.inf, dtype=torch.float64)
    while len(rows) < k:
        distance = distance.minimum(((points - points[rows[-1]]) ** 2).sum(1))
        weight = distance.clone()
        weight[rows] = 0
        if not bool(weight.sum() > 0):  # fewer different points than experts
            weight = torch.ones_like(weight)
            weight[rows] = 0
        rows.append(int(torch.multinomial(weight, 1, generator=generator)))
    return torch.tensor(rows)


def _scores(points: Tensor, centres: Tensor) -> Tensor:
    return points @ centres.T - 0.5 * (centres**2).sum(1)


class ClusterPortions(nn.Module):
    """Known portions by balanced clusters of the delegator's features. OURS.

    While the experts are still alike, `observe` remembers the features of the last few thousand samples;
    `settle` clusters them. From there on a sample has the cluster that it was in when it first came
    up, whatever becomes of the features, and a call gives the portions of a batch, to be handed to
    `CoTrainingObjective` as ``known_portion``; `handed_to_evidence` lets evidence take over. All state is
    in buffers.

    Args:
        num_experts: k.
        num_features: d.
        num_samples: size of the training set.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> portions = ClusterPortions(num_experts=2, num_features=1, num_samples=4)
        >>> features, index = torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.arange(4)
        >>> portions(features, index).tolist()  # not settled: nothing is known
        [-1, -1, -1, -1]
        >>> portions.observe(features)
        >>> portions.settle()
        >>> first, second, third, fourth = portions(features, index).tolist()
        >>> (first, third) == (second, fourth), first != third
        (True, True)
    """

    seen: Tensor  # features [m, d] of the last samples, NaN where there are none yet
    scale: Tensor  # [2, d]: mean and deviation of the features, when settled
    centres: Tensor  # [k, d], NaN before
    prices: Tensor  # [k]
    cluster: Tensor  # of each training sample, -1 before it has come up

    def __init__(self, num_experts: int, num_features: int, num_samples: int):
        super().__init__()
        k = whole("num_experts", num_experts, least=1)
        d = whole("num_features", num_features, least=1)
        n = whole("num_samples", num_samples, least=1)
        self.register_buffer("seen", torch.full((min(_SAMPLES, n), d), torch.nan))
        self.register_buffer("scale", torch.zeros(2, d))
        self.register_buffer("centres", torch.full((k, d), torch.nan))
        self.register_buffer("prices", torch.zeros(k))
        self.register_buffer("cluster", torch.full((n,), -1))

    @property
    def settled(self) -> bool:
        """Whether the clusters are known."""
        return not bool(self.centres.isnan().any())

    @torch.no_grad()
    def observe(self, features: Float[Tensor, "n d"]) -> None:
        """Remember the (global) batch's features; the oldest are forgotten."""
        rows = gather_rows(features.float()).rows
        self.seen.copy_(torch.cat([rows, self.seen])[: len(self.seen)])

    @torch.no_grad()
    def settle(self) -> None:
        """Find the clusters of what was observed; once they are known, no effect.

        Raises:
            ValueError: fewer samples observed than experts, or features that are not finite.
        """
        if self.settled:
            return
        points = self.seen[~self.seen.isnan().any(1)]
        k = len(self.centres)
        if len(points) < k:
            raise ValueError(
                f"features of {len(points)} samples were observed, for {k} clusters: let the experts be "
                "alike for longer before they differ"
            )
        mean, deviation = points.mean(0), points.std(0, correction=0)
        self.scale.copy_(torch.stack([mean, deviation.where(deviation > 0, 1.0)]))
        clusters = balanced_clusters(self._standardised(points), k)
        self.centres.copy_(clusters.centres)
        self.prices.copy_(clusters.prices)
        self.seen.fill_(torch.nan)

    @torch.no_grad()
    def forward(
        self, features: Float[Tensor, "n d"], index: Int[Tensor, " n"]
    ) -> Int[Tensor, " n"]:
        """The known portion of each sample; -1 for all before the clusters are known.

        Args:
            features: of the delegator, from which a sample that comes up for the first time is placed.
            index: which training sample each row is.

        Raises:
            ValueError: an index that is no training sample's.
        """
        if not self.settled:
            return torch.full_like(index, -1)
        n = len(self.cluster)
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < n:
            raise ValueError(
                f"index holds samples {int(index.min())}..{int(index.max())}, but the training set has "
                f"{n} (0..{n - 1})"
            )
        scores = _scores(self._standardised(features.float()), self.centres) - self.prices
        rows, _ = gather_rows(torch.stack([index, scores.argmax(1).to(index)], 1))
        new = rows[self.cluster[rows[:, 0]] < 0].flip(0)  # of a repeated sample the first counts
        self.cluster[new[:, 0]] = new[:, 1]
        return self.cluster[index]

    def _standardised(self, features: Tensor) -> Tensor:
        return (features - self.scale[0]) / self.scale[1]
