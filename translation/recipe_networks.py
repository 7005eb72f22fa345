"""What the networks of a recipe consist of and spend, before anything is trained. Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from translation.generation.macs import TransformerMacs
from translation.recipe import Recipe
from translation.recipe_sections import Transformer


class Part(NamedTuple):
    """One network of a recipe, or one whole system."""

    name: str
    parameters: int
    macs: float  # of a sentence


def transformer_parts(network: Transformer, vocabulary: int) -> TransformerMacs:
    """Multiply-adds of a plain transformer with shared embeddings, as `transformer_macs` counts a built one.

    Args:
        network: its sizes.
        vocabulary: entries of the dictionary.

    Example:
        >>> transformer_parts(Transformer(8, 16, 1, 1, 2), 100).decoder_token
        1440
    """
    d, inner = network.embed_dim, network.ffn_embed_dim
    block = 4 * d * d + 2 * d * inner  # attention to itself, feed-forward
    return TransformerMacs(
        encoder_token=network.encoder_layers * block,
        encoder_pair=2 * d * network.encoder_layers,
        memory_token=2 * d * d * network.decoder_layers,
        decoder_token=network.decoder_layers * (block + 2 * d * d) + d * vocabulary,
        decoder_pair=2 * d * network.decoder_layers,
    )


def transformer_parameters(network: Transformer, vocabulary: int, final_norm: bool) -> int:
    """Parameters of a plain transformer with shared embeddings.

    Args:
        network: its sizes.
        vocabulary: entries of the dictionary.
        final_norm: whether encoder and decoder end with a layer norm (`Training.normalize_before`).

    Example:
        >>> transformer_parameters(Transformer(8, 16, 1, 1, 2), 100, final_norm=False)
        2304
    """
    encoder = network.encoder_layers * _layer_parameters(network, attentions=1)
    encoder += 2 * network.embed_dim if final_norm else 0
    return network.embed_dim * vocabulary + encoder + _decoder_parameters(network, final_norm)


def _layer_parameters(network: Transformer, attentions: int) -> int:
    """Of a layer: attentions and a feed-forward block, each with a layer norm."""
    d, inner = network.embed_dim, network.ffn_embed_dim
    return attentions * 4 * (d * d + d) + 2 * d * inner + inner + d + (attentions + 1) * 2 * d


def _decoder_parameters(network: Transformer, final_norm: bool) -> int:
    """Of a decoder without its embeddings."""
    layers = network.decoder_layers * _layer_parameters(network, attentions=2)
    return layers + (2 * network.embed_dim if final_norm else 0)


def _layers(network: Transformer, count: int, tokens: int) -> Part:
    """Layers of a network's encoder, without embeddings."""
    if count == 0:
        return Part("layers", 0, 0.0)
    spends = transformer_parts(dataclasses.replace(network, encoder_layers=count), 1)
    macs = tokens * spends.encoder_token + tokens**2 * spends.encoder_pair
    return Part("layers", count * _layer_parameters(network, attentions=1), macs)


def _layers_of_delegator(recipe: Recipe, tokens: int) -> tuple[Part, Part]:
    """Its encoder's by its own sizes, and as they are built: where layers are shared, by the experts'."""
    count = recipe.delegator.encoder_layers
    own = _layers(recipe.delegator, count, tokens)
    if not recipe.hand_over.encoder_layers:
        return own, own
    return own, _layers(recipe.experts[0], count, tokens)


def parts(recipe: Recipe, tokens: int) -> Iterator[Part]:
    """Every network, then the team with and without exits.

    Args:
        recipe: whose; its dictionary is taken to have as many entries as pieces were asked for, and
            fairseq's four of its own.
        tokens: pieces of a source sentence and of its translation, their ends included.
    """
    entries, beam = recipe.vocabulary.size + 4, recipe.generation.beam
    final_norm = recipe.training.normalize_before

    def part(name: str, network: Transformer, copies: int = 1) -> Part:
        macs = transformer_parts(network, entries).of_lengths(tokens, tokens, beam)
        return Part(
            name, copies * transformer_parameters(network, entries, final_norm), copies * macs
        )

    head = recipe.delegator.embed_dim * recipe.num_experts
    shared = _layers(recipe.experts[0], recipe.hand_over.encoder_layers, tokens)
    rough = part("delegator", recipe.delegator)
    own, encoder = _layers_of_delegator(recipe, tokens)
    rough = Part(
        rough.name,
        rough.parameters + encoder.parameters - own.parameters + head + recipe.num_experts,
        rough.macs + encoder.macs - own.macs + head,
    )
    experts = [part(f"expert-{j}", network) for j, network in enumerate(recipe.expert_networks)]
    yield rough
    yield from experts
    for name, control in recipe.controls.items():
        count = 1 if control.one_per is None else len(recipe.languages.directions)
        single = part(f"control {name}", control)
        yield Part(
            single.name + (f", {count} of them" if count > 1 else ""),
            count * single.parameters,
            single.macs,
        )
    for name, ensemble in recipe.ensembles.items():
        yield part(f"ensemble {name}", ensemble.network, ensemble.size)
    parameters = rough.parameters + sum(expert.parameters for expert in experts)
    if recipe.hand_over.encoder_layers:  # one for all, embeddings too
        once = shared.parameters + recipe.experts[0].embed_dim * entries
        parameters -= len(experts) * once
    if recipe.hand_over.decoder:
        first, repeated = recipe.experts[0], len(experts) - 1
        parameters -= repeated * _decoder_parameters(first, final_norm)
        if not recipe.hand_over.encoder_layers:
            parameters -= repeated * first.embed_dim * entries
    mean = sum(expert.macs for expert in experts) / len(experts) - shared.macs
    yield Part("team, no exits", parameters, encoder.macs + head + mean)
    for rate in (0.25, 0.5, 0.75):
        yield Part(f"team, {rate:.0%} exits", parameters, rough.macs + (1 - rate) * mean)
