"""The law: where what a collaboration gains comes from, as sums that add up exactly."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from coe_core.routing import select_expert


class Law(NamedTuple):
    """What a collaboration gains over the mean of its experts, and from what. All in [-1, 1]; OURS.

    ``gain - loss + pooling`` is the quality of the collaboration (no exits) minus that of an expert drawn
    at random; with ``specialising`` it is that minus a single network's.
    """

    routable: float  # share of samples on which the experts differ: where the choice matters
    routed_right: float  # share of those that go to a best expert; 0 where there are none
    gain: float  # of the selected experts over the mean expert, on samples routed right
    loss: float  # to the mean expert, on samples routed wrong; at least 0 for qualities of 0 and 1
    pooling: float  # of the final predictions over the selected experts' own
    specialising: float | None  # of the mean expert over a single network; None: there is none

    @property
    def above_mean_expert(self) -> float:
        """The collaboration's quality minus that of a random expert."""
        return self.gain - self.loss + self.pooling

    @property
    def above_single(self) -> float | None:
        """The collaboration's quality minus the single network's; None: there is none."""
        return None if self.specialising is None else self.above_mean_expert + self.specialising

    @property
    def shown(self) -> str:
        """The law in one line, in points.

        Example:
            >>> Law(0.25, 0.8, 0.06, 0.02, 0.01, None).shown
            'routable 25.0%, of them routed right 80.0%; specialists gain +6.0, ... mean expert'
        """
        line = (
            f"routable {100 * self.routable:.1f}%, of them routed right {100 * self.routed_right:.1f}%; "
            f"specialists gain {100 * self.gain:+.1f}, wrong routes cost {100 * self.loss:.1f}, "
            f"pooling {100 * self.pooling:+.1f}: {100 * self.above_mean_expert:+.1f} over the mean expert"
        )
        if self.specialising is None or self.above_single is None:
            return line
        return (
            f"{line}, which is {100 * self.specialising:+.1f} beside the single network: "
            f"{100 * self.above_single:+.1f} over it"
        )


def gain_law(
    expert_quality: Float[Tensor, "n k"],
    selection_logits: Float[Tensor, "n k"],
    final_quality: Float[Tensor, " n"] | None = None,
    single_quality: Float[Tensor, " n"] | None = None,
) -> Law:
    """Part what a collaboration gains into gain of specialists, cost of wrong routes, and pooling. OURS.

    With Q_ij the quality of expert j on sample i, s(i) the selected expert and m_i the mean of Q_ij over
    j, a sample is *routed right* where Q_is(i) = max_j Q_ij and *wrong* elsewhere, and

    - gain = 1/n sum over samples routed right of Q_is(i) - m_i, at least 0;
    - loss = 1/n sum over samples routed wrong of m_i - Q_is(i);
    - pooling = mean of the final quality - mean of Q_is(i).

    So gain - loss + pooling = final quality - mean expert, exactly.

    Args:
        expert_quality: Q, such as 1 right and 0 wrong, or a probability of the truth.
        selection_logits: of the delegator; the largest is selected.
        final_quality: of the final predictions, the rough ones pooled into them, without exits; None: the
            selected experts' own.
        single_quality: of one network trained alone, on the same samples.

    Raises:
        ValueError: no samples, shapes that disagree, or qualities that are not finite.

    Example:
        >>> import torch
        >>> right = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
        >>> selection = torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0], [9.0, 0.0]])
        >>> found = gain_law(right, selection)
        >>> found.routable, found.routed_right, found.gain, found.loss
        (0.5, 0.5, 0.125, 0.125)
    """
    n, k = expert_quality.shape
    if n == 0 or k == 0:
        raise ValueError(f"no law of {n} samples and {k} experts; give one of each at least")
    for name, array, shape in (
        ("selection_logits", selection_logits, (n, k)),
        ("final_quality", final_quality, (n,)),
        ("single_quality", single_quality, (n,)),
    ):
        if array is not None and array.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(array.shape)}, but there are {n} samples and {k} experts: "
                f"expected {shape}"
            )
    quality = expert_quality.double()
    selected = quality.gather(1, select_expert(selection_logits)[:, None])[:, 0]
    final = selected if final_quality is None else final_quality.double()
    single = None if single_quality is None else single_quality.double()
    for name, array in (
        ("expert_quality", quality),
        ("final_quality", final),
        ("single_quality", single),
    ):
        if array is not None and not bool(array.isfinite().all()):
            raise ValueError(f"{name} is not finite everywhere; a network has diverged")
    mean = quality.mean(1)
    best, differ = quality.amax(1), quality.amax(1) > quality.amin(1)
    right = selected == best
    over = selected - mean
    return Law(
        float(differ.double().mean()),
        float((right & differ).sum() / differ.sum()) if bool(differ.any()) else 0.0,
        float(over[right].sum() / n),
        float(-over[~right].sum() / n),
        float((final - selected).mean()),
        None if single is None else float((mean - single).mean()),
    )
