"""One decoder for all experts, each of which keeps an encoder of its own. OURS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fairseq.models.transformer import TransformerModel
from jaxtyping import Int
from torch import Tensor

EncoderOut = dict[str, list[Tensor]]


def share_decoder(experts: Sequence[TransformerModel], tied: bool) -> None:
    """Let all experts translate by the first one's decoder: the same module.

    Every expert stays a whole transformer in a checkpoint. What several source languages have in common
    is the target, so the decoder learns from every sentence, and an encoder from those of its portion.

    Args:
        experts: whose decoders are built alike.
        tied: whether a network's encoder and decoder use the same embeddings, which then are one for all.

    Raises:
        ValueError: decoders of different depth.

    Example:
        ``fairseq-train DATA --arch coe_transformer --shared-decoder --portion-groups train.groups ...``
    """
    first, *others = experts
    depths = [len(expert.decoder.layers) for expert in experts]
    if len(set(depths)) > 1:
        raise ValueError(
            f"--shared-decoder: experts that share a decoder have as many layers in it, but theirs are of "
            f"{', '.join(map(str, depths))} layers; give --expert-encoder-layers alone"
        )
    for expert in others:
        expert.decoder = first.decoder
        if tied:
            expert.encoder.embed_tokens = first.encoder.embed_tokens


def joined(parts: Sequence[EncoderOut], order: Int[Tensor, " n"]) -> EncoderOut:
    """What several encoders returned, as if one had: what a decoder reads of it, in another order.

    Args:
        parts: of sentences that are padded to one length.
        order: place of each sentence of the joined batch in the parts, one after another.
    """
    states = torch.cat([part["encoder_out"][0] for part in parts], 1)
    padding = torch.cat([part["encoder_padding_mask"][0] for part in parts])
    return {"encoder_out": [states[:, order]], "encoder_padding_mask": [padding[order]]}
