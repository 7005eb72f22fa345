"""MACs of a sentence against torch's own counter on real generations."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from coe_core import count_macs
from translation.generation.macs import TransformerMacs, transformer_macs


@pytest.fixture(scope="module")
def loaded(load_team, team):
    return load_team(team / "checkpoint_last.pt")


def searched(network, task, source, beam):
    """Steps, and what torch counted of the whole search, at batch 1."""
    from argparse import Namespace

    torch.backends.mha.set_fastpath_enabled(False)  # one fused operator would count as nothing
    generator = task.plain_generator([network], Namespace(beam=beam, max_len_b=20))
    sample = {"net_input": {"src_tokens": source, "src_lengths": torch.tensor([source.shape[1]])}}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        (hypotheses,) = generator.generate([network], sample)
    torch.backends.mha.set_fastpath_enabled(True)
    return max(
        len(hypothesis["tokens"]) for hypothesis in hypotheses
    ), counter.get_total_flops() / 2


@pytest.mark.parametrize("name", ["delegator", "expert-0", "expert-1"])
@pytest.mark.parametrize(("length", "beam"), [(3, 1), (7, 1), (5, 4), (12, 5)])
def test_sentence_equals_the_counter(loaded, name, length, beam):
    team, task = loaded
    network = team.delegator if name == "delegator" else team.experts[int(name[-1])]
    draw = torch.Generator().manual_seed(length)
    source = torch.randint(4, len(task.source_dictionary), (1, length), generator=draw)
    source[0, -1] = task.source_dictionary.eos()
    steps, counted = searched(network, task, source, beam)
    ours = transformer_macs(network).sentence(torch.tensor([length]), torch.tensor([steps]), beam)
    assert ours.item() == counted


def test_teacher_forcing_is_all_steps_without_the_cache(loaded):
    """Encoder and output agree with coe_core's counter on a plain forward too."""
    team, _ = loaded
    network, spends = team.experts[0], transformer_macs(team.experts[0])
    source, target = torch.full((1, 6), 5), torch.full((1, 4), 5)
    counted = count_macs(network, source, torch.tensor([6]), target)
    by_hand = 6 * spends.encoder_token + 36 * spends.encoder_pair
    by_hand += 6 * spends.memory_token + 4 * spends.decoder_token
    by_hand += (
        4 * 4 + 4 * 6
    ) * spends.decoder_pair  # a forward also multiplies what the mask hides
    assert counted == by_hand


def test_by_hand():
    """Width 2, inner width 3, 1+1 layers, 5 words: 4*4+2*6, 2*2, 2*4, 6*4+2*6+10, 2*2."""
    spends = TransformerMacs(28, 4, 8, 46, 4)
    macs = spends.sentence(torch.tensor([2, 1]), torch.tensor([3, 1]), beam=2)
    assert macs.tolist() == [
        2 * 28 + 4 * 4 + 2 * (2 * 8 + 3 * 46 + (3 * 2 + 1 + 2 + 3) * 4),
        28 + 4 + 2 * (8 + 46 + 2 * 4),
    ]


def test_what_is_not_counted_is_an_error(loaded):
    from copy import deepcopy

    network = deepcopy(loaded[0].experts[1])
    network.encoder.layers[0].fc1 = torch.nn.Conv1d(4, 4, 1)
    with pytest.raises(ValueError, match="Conv1d in a transformer: its multiply-adds"):
        transformer_macs(network)
    network = deepcopy(loaded[0].experts[1])
    network.decoder.layers[0].encoder_attn.embed_dim = 7
    with pytest.raises(ValueError, match="itself in 64 dimensions and to the source in 7"):
        transformer_macs(network)


@pytest.mark.parametrize("final_norm", [False, True])
def test_what_a_recipe_says_before_training_is_what_is_built(loaded, final_norm):
    from argparse import Namespace

    from fairseq.models.transformer import TransformerModel

    from translation.recipe_networks import transformer_parameters, transformer_parts
    from translation.recipe_sections import Transformer

    _, task = loaded
    options = {f"{side}_normalize_before": final_norm for side in ("encoder", "decoder")}
    options |= {f"{side}_embed_dim": 12 for side in ("encoder", "decoder")}
    options |= {f"{side}_ffn_embed_dim": 20 for side in ("encoder", "decoder")}
    options |= {f"{side}_attention_heads": 3 for side in ("encoder", "decoder")}
    from fairseq.models.transformer import base_architecture

    cfg = Namespace(encoder_layers=3, decoder_layers=2, share_all_embeddings=True, **options)
    base_architecture(cfg)
    built = TransformerModel.build_model(cfg, task)
    sizes, entries = Transformer(12, 20, 3, 2, 3), len(task.source_dictionary)
    assert transformer_parts(sizes, entries) == transformer_macs(built)
    numbers = sum(parameter.numel() for parameter in built.parameters())
    assert transformer_parameters(sizes, entries, final_norm) == numbers
