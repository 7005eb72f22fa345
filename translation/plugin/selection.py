"""The delegator's second answer: which expert suits a sentence, from its mean-pooled encoder output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn


class SelectionHead(nn.Module):
    """Selection logits of a sentence: one linear layer on the mean of its encoder states.

    RECONSTRUCTED: the abstract says that the delegator selects, not how.

    Args:
        dim: of the encoder states.
        num_experts: k.

    Example:
        >>> import torch
        >>> head = SelectionHead(8, num_experts=3)
        >>> head(torch.zeros(5, 2, 8), torch.zeros(2, 5, dtype=torch.bool)).shape
        torch.Size([2, 3])
    """

    def __init__(self, dim: int, num_experts: int):
        super().__init__()
        self.linear = nn.Linear(dim, num_experts)

    def forward(
        self, states: Float[Tensor, "t n d"], padding: Bool[Tensor, "n t"] | None = None
    ) -> Float[Tensor, "n k"]:
        """Logits of every sentence; positions where ``padding`` is true do not count."""
        if padding is None:
            pooled = states.mean(0)
        else:
            kept = (~padding).T.unsqueeze(2).to(states.dtype)  # [t, n, 1]
            pooled = (states * kept).sum(0) / kept.sum(0).clamp(min=1)
        return self.linear(pooled)


def listen_to_selection(
    generator: Any, select: Callable[[dict[str, list[Tensor]]], Tensor]
) -> Callable[[], Tensor]:
    """Let the generator's encoder pass also give the selection, so that nothing runs twice.

    Args:
        generator: of the delegator alone.
        select: selection logits from what the delegator's encoder returned.
    """
    selection: list[Tensor] = []
    encode = generator.model.forward_encoder

    def forward_encoder(net_input: dict[str, Tensor]) -> Any:
        encoded = encode(net_input)
        selection[:] = [select(encoded[0])]
        return encoded

    generator.model.forward_encoder = forward_encoder
    return lambda: selection[0]
