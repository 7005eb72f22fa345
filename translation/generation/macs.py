"""Multiply-adds (MACs) of translating a sentence: encoder, decoder steps, beam. Nothing of fairseq here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor, nn


class TransformerMacs(NamedTuple):
    """What one network spends, by what it spends it on; `sentence` puts it together.

    Matrix products only, as everywhere (`coe_core.count_macs`): embeddings, normalisation and softmax do
    not count. Products with the padding of a batch do not count either: they are the batch's, not the
    sentence's.
    """

    encoder_token: int  # projections and feed-forward, for each source token
    encoder_pair: int  # attention, for each pair of source tokens
    memory_token: int  # keys and values of the decoder's view of a source token, once for each beam
    decoder_token: int  # projections, feed-forward and vocabulary, for each step of each beam
    decoder_pair: int  # attention, for each step, beam and source token or token so far

    def sentence(
        self, source_tokens: Int[Tensor, " n"], steps: Int[Tensor, " n"], beam: int
    ) -> Float[Tensor, " n"]:
        """MACs of translating each sentence by beam search with cached keys and values.

        The encoder runs once; every step runs all beams, also those that only wait for the last
        hypothesis, and attends to the source and to what it wrote so far, itself included.

        Args:
            source_tokens: of each sentence, its end included.
            steps: decoder steps until the search ended: tokens of the longest finished hypothesis,
                end included.
            beam: hypotheses kept.

        Example:
            >>> import torch
            >>> spends = TransformerMacs(10, 1, 2, 100, 1)
            >>> spends.sentence(torch.tensor([3]), torch.tensor([2]), beam=1).tolist()  # 39 + 6 + 209
            [254.0]
        """
        return self.of_lengths(source_tokens.double(), steps.double(), beam)

    def of_lengths(self, s: Any, t: Any, beam: int) -> Any:
        """As `sentence`, of plain numbers or of tensors of floats.

        Example:
            >>> TransformerMacs(10, 1, 2, 100, 1).of_lengths(3, 2, beam=1)
            254.0
        """
        pairs = t * s + t * (t + 1) / 2
        decoder = s * self.memory_token + t * self.decoder_token + pairs * self.decoder_pair
        return s * self.encoder_token + s * s * self.encoder_pair + beam * decoder

    def without(self, shared: TransformerMacs) -> TransformerMacs:
        """What is left of a network whose first layers have run already.

        Example:
            >>> TransformerMacs(10, 2, 2, 100, 1).without(TransformerMacs(6, 1, 0, 0, 0))[:3]
            (4, 1, 2)
        """
        return TransformerMacs(*(whole - part for whole, part in zip(self, shared, strict=True)))

    def encoder(self, source_tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """MACs of the encoder alone, which is all that a selection needs.

        Example:
            >>> import torch
            >>> TransformerMacs(10, 1, 2, 100, 1).encoder(torch.tensor([3])).tolist()
            [39.0]
        """
        s = source_tokens.double()
        return s * self.encoder_token + s * s * self.encoder_pair


def transformer_macs(model: Any) -> TransformerMacs:
    """Count a plain transformer (fairseq's names: encoder, decoder, layers, self_attn, encoder_attn).

    Args:
        model: network with ``encoder`` and ``decoder``.

    Raises:
        ValueError: parts whose multiply-adds would not be counted.
    """
    encoder, decoder = model.encoder, model.decoder
    memory = [
        getattr(layer.encoder_attn, name)
        for layer in decoder.layers
        for name in ("k_proj", "v_proj")
    ]
    extra = [
        part
        for name in ("project_in_dim", "project_out_dim")
        if (part := getattr(decoder, name, None)) is not None
    ]
    written = _linear(decoder.layers) - sum(part.weight.numel() for part in memory)
    written += sum(_linear(part) for part in extra) + decoder.output_projection.weight.numel()
    return TransformerMacs(
        encoder_token=_linear(encoder.layers),
        encoder_pair=2 * sum(layer.self_attn.embed_dim for layer in encoder.layers),
        memory_token=sum(part.weight.numel() for part in memory),
        decoder_token=written,
        decoder_pair=2 * _one_width(decoder.layers),
    )


def encoder_macs(encoder: Any, layers: int) -> TransformerMacs:
    """Count the first layers of an encoder alone.

    Args:
        encoder: of fairseq's.
        layers: how many.
    """
    first = encoder.layers[:layers]
    width = sum(layer.self_attn.embed_dim for layer in first)
    return TransformerMacs(sum(map(_linear, first)), 2 * width, 0, 0, 0)


def _linear(part: nn.Module) -> int:
    """Multiply-adds of all linear layers for one token."""
    from torch import nn

    for module in part.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.RNNBase)):
            raise ValueError(
                f"{type(module).__name__} in a transformer: its multiply-adds are not counted here"
            )
    return sum(module.weight.numel() for module in part.modules() if isinstance(module, nn.Linear))


def _one_width(layers: Iterable[Any]) -> int:
    """Sum over layers of the attention's width, which must be that of self- and cross-attention alike."""
    for layer in layers:
        width, cross = layer.self_attn.embed_dim, layer.encoder_attn.embed_dim
        if width != cross:
            raise ValueError(
                f"a decoder layer attends to itself in {width} dimensions and to the source in {cross}; "
                "only equal ones are counted"
            )
    return sum(layer.self_attn.embed_dim for layer in layers)
