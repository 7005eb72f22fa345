"""An encoder whose first layers serve the delegator and all experts, and run once a sentence. OURS."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from fairseq.models.transformer import TransformerEncoder, TransformerModel
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

_REMEMBERED = 4096  # sentences


class Handed(NamedTuple):
    """What the shared layers make of a batch."""

    states: Float[Tensor, "s n d"]
    padding: Bool[Tensor, "n s"]
    embedding: Float[Tensor, "n s d"]  # of the tokens, which fairseq's encoders return too

    def rows(self, rows: Int[Tensor, " m"]) -> Handed:
        """Some of the sentences."""
        return Handed(self.states[:, rows], self.padding[rows], self.embedding[rows])


class SharedLayers:
    """Embeddings and first layers of an encoder, which other encoders begin with.

    Args:
        encoder: whose they are.
        count: of layers.
    """

    def __init__(self, encoder: TransformerEncoder, count: int):
        self.encoder, self.count = encoder, count
        self.known: OrderedDict[tuple[int, ...], Tensor] | None = None  # a sentence -> its states

    def __call__(self, source: Int[Tensor, "n s"]) -> Handed:
        """States behind the shared layers; those of sentences that were seen are remembered."""
        if self.known is None:
            return self._run(source)
        pad = self.encoder.padding_idx
        sentences = [tuple(word for word in row if word != pad) for row in source.tolist()]
        if all(sentence in self.known for sentence in sentences):
            return self._recalled(source, [self.known[sentence] for sentence in sentences])
        handed = self._run(source)
        for row, sentence in enumerate(sentences):
            self.known[sentence] = handed.states[~handed.padding[row], row]
            if len(self.known) > _REMEMBERED:
                self.known.popitem(last=False)
        return handed

    @contextlib.contextmanager
    def remembering(self) -> Iterator[None]:
        """Within the block a sentence runs through the shared layers once, whichever network asks first."""
        outer, self.known = self.known, OrderedDict()
        try:
            yield
        finally:
            self.known = outer

    def _run(self, source: Tensor) -> Handed:
        encoder = self.encoder
        padding = source.eq(encoder.padding_idx)
        states, embedding = encoder.forward_embedding(source)
        padded = bool(padding.any())
        if padded:
            states = states * (1 - padding.unsqueeze(-1).type_as(states))
        states = states.transpose(0, 1)
        for layer in encoder.layers[: self.count]:
            states = layer(states, encoder_padding_mask=padding if padded else None)
        return Handed(states, padding, embedding)

    def _recalled(self, source: Tensor, known: Sequence[Tensor]) -> Handed:
        """The states of a batch, from those of its sentences."""
        padding = source.eq(self.encoder.padding_idx)
        states = known[0].new_zeros(source.shape[1], len(source), known[0].shape[1])
        for row, of_sentence in enumerate(known):
            states[~padding[row], row] = of_sentence
        return Handed(states, padding, states.transpose(0, 1))


class BranchedEncoder(TransformerEncoder):
    """fairseq's encoder that goes on from shared layers; without any it is as fairseq's.

    Its parameters have fairseq's names, the shared ones among them, so that it is whole in a checkpoint.
    """

    shared: SharedLayers | None = None

    def forward_scriptable(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
    ) -> dict[str, list[Tensor]]:
        if self.shared is None or return_all_hiddens or token_embeddings is not None:
            return super().forward_scriptable(
                src_tokens, src_lengths, return_all_hiddens, token_embeddings
            )
        return self.go_on(self.shared(src_tokens))

    def go_on(self, handed: Handed) -> dict[str, list[Tensor]]:
        """What fairseq's encoders return, from what the shared layers made."""
        assert self.shared is not None, "an encoder of its own starts from tokens"
        states, padding = handed.states, handed.padding
        mask = padding if bool(padding.any()) else None
        for layer in self.layers[self.shared.count :]:
            states = layer(states, encoder_padding_mask=mask)
        if self.layer_norm is not None:
            states = self.layer_norm(states)
        lengths = (~padding).sum(1, dtype=torch.int32).reshape(-1, 1).contiguous()
        return {
            "encoder_out": [states],
            "encoder_padding_mask": [padding],
            "encoder_embedding": [handed.embedding],
            "encoder_states": [],
            "fc_results": [],
            "src_tokens": [],
            "src_lengths": [lengths],
        }


class BranchedTransformer(TransformerModel):
    """fairseq's transformer with a `BranchedEncoder`."""

    @classmethod
    def build_encoder(cls, cfg: Any, src_dict: Any, embed_tokens: nn.Module) -> BranchedEncoder:
        return BranchedEncoder(cfg, src_dict, embed_tokens)


def share_layers(networks: Sequence[BranchedTransformer], count: int, tied: bool) -> SharedLayers:
    """Let the encoders of all networks begin with the last network's first layers: the same modules.

    Where a network ties its embeddings, they are one for all networks then.

    Args:
        networks: the delegator, and the experts.
        count: of layers, at least 1.
        tied: whether each network's decoder uses the embeddings of its encoder.

    Raises:
        ValueError: encoders that are not wide, or not deep enough (says which).
    """
    giver = networks[-1].encoder
    for place, network in enumerate(networks):
        name = "the delegator" if place == 0 else f"expert {place - 1}"
        encoder = network.encoder
        if encoder.embed_tokens.embedding_dim != giver.embed_tokens.embedding_dim:
            raise ValueError(
                f"--shared-encoder-layers {count}: networks that share layers have embeddings of one "
                f"dimension, but {name} has {encoder.embed_tokens.embedding_dim}, the experts "
                f"{giver.embed_tokens.embedding_dim}; give --delegator-embed-dim the experts' dimension"
            )
        if len(encoder.layers) < count:
            raise ValueError(
                f"--shared-encoder-layers {count}: {name} has {len(encoder.layers)} encoder layers; the "
                "shared ones are the first of each network's"
            )
    shared = SharedLayers(giver, count)
    for network in networks:
        encoder = network.encoder
        for name in ("embed_tokens", "embed_positions", "layernorm_embedding"):
            setattr(encoder, name, getattr(giver, name))
        for place in range(count):
            encoder.layers[place] = giver.layers[place]
        encoder.shared = shared
        if tied:
            network.decoder.embed_tokens = giver.embed_tokens
            network.decoder.output_projection.weight = giver.embed_tokens.weight
    return shared
