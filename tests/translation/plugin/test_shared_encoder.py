"""Networks whose encoders begin with the same layers: trained, taken apart, translated with, counted."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from translation.plugin.checkpoints import load_state, parameters_of, take_network
from translation.recipe import load_recipe
from translation.recipe_networks import parts

SHARED = ("--shared-encoder-layers", "1", "--delegator-embed-dim", "64")
SHARED += ("--delegator-encoder-layers", "2", "--delegator-ffn-embed-dim", "32")


@pytest.fixture(scope="module")
def shared(tmp_path_factory, corpus, shell):
    """Checkpoint of a team of two, one network for half of its training, with one layer for all encoders."""
    folder = tmp_path_factory.mktemp("shared")
    words = [*shell.PLUGIN, *shell.TRAIN, *shell.TEAM, *SHARED, "--max-update", "30"]
    shell("fairseq-train", corpus.binary, *words, "--save-dir", folder)
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def loaded(load_team, shared):
    return load_team(shared)


@pytest.fixture(scope="module")
def engine(shared, corpus):
    from translation.plugin.loading import load_fairseq

    load_fairseq()
    from translation.prediction.fairseq_engine import FairseqEngine

    return FairseqEngine(shared, corpus.binary, None, device="cpu")


@pytest.fixture(scope="module")
def sentences(corpus):
    lines = (corpus.text / "test.de").read_text(encoding="utf-8").split("\n")[:24]
    return [line.split() for line in lines if line]


def test_one_layer_is_of_all_and_the_others_are_of_each(shared):
    state = load_state(shared)
    delegator, first, second = (
        parameters_of(state, name) for name in ("delegator", "expert-0", "expert-1")
    )
    same = {
        name for name, value in first.items()
        if torch.equal(value, delegator.get(name, value[:0])) and torch.equal(value, second[name])
    }  # fmt: skip
    lower = ("encoder.layers.0.", "encoder.embed_tokens", "decoder.embed_tokens", "decoder.output")
    assert {name for name in first if name.startswith(lower)} <= same
    assert not any(name.startswith(("encoder.layers.1.", "decoder.layers.")) for name in same)
    assert delegator["encoder.layers.0.fc1.weight"].shape == (128, 64)  # the experts' layer
    assert delegator["encoder.layers.1.fc1.weight"].shape == (128, 64)  # as one transformer has it
    assert delegator["decoder.layers.0.fc1.weight"].shape == (32, 64)


def test_a_network_that_is_taken_out_is_whole(shared, generate, corpus, shell, tmp_path):
    for name, router in (
        ("delegator", ("--threshold", "0")),
        ("expert-1", ("--router", "always-1")),
    ):
        path = tmp_path / f"{name}.pt"
        torch.save(take_network(load_state(shared), name), path)
        plain = shell(
            *("fairseq-generate", corpus.binary, "--task", "translation", "--path", path),
            *("--cpu", "--beam", "3", "--num-workers", "0"),
        )
        theirs = plain.hypotheses()
        ours = generate(*router, path=shared).hypotheses()
        assert {n: ours[n] for n in ours if n != 5} == {n: theirs[n] for n in theirs if n != 5}


def test_shared_layers_run_once_a_sentence_and_are_counted_once(engine, sentences):
    from translation.generation.macs import transformer_macs
    from translation.prediction.engine import Search, Setting

    team, seen = engine.team, []
    hook = team.shared.encoder.layers[0].register_forward_hook(
        lambda layer, inputs, output: seen.append(inputs[0].shape[1])
    )
    search = Search(beam=2, max_len=20)
    alone = engine.decode(sentences, Setting("", "CoE", math.inf), search, 1)
    assert sum(seen) == len(sentences)
    seen.clear()
    both = engine.decode(sentences, Setting("", "CoE", 1.0), search, 1)
    hook.remove()
    assert sum(seen) == len(sentences)  # the delegator translates, and then an expert
    assert [decoded.texts for decoded in alone] == [decoded.texts for decoded in both]
    delegator = engine.decode(sentences, Setting("", "CoE", 0.0), search, 1)
    selects = transformer_macs(team.delegator)
    for row, words in enumerate(sentences):
        length = torch.tensor([len(words) + 1])
        selection = selects.encoder(length).item() + 64 * 2
        assert alone[row].macs - selection == pytest.approx(both[row].macs - delegator[row].macs)


def test_the_cost_is_what_torch_counts(loaded):
    """Of one sentence without exits, beam 1: the delegator's encoder, and what is left of an expert."""
    from argparse import Namespace

    team, task = loaded
    source, length = torch.tensor([[5, 6, 7, 2]]), torch.tensor([4])
    generator = task.build_generator([team], Namespace(beam=1, max_len_b=20))
    generator.threshold = math.inf
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operator would count as nothing
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ((best, *_),) = generator.generate([team], {"net_input": {"src_tokens": source}})
    torch.backends.mha.set_fastpath_enabled(True)
    from translation.generation.macs import transformer_macs

    spends = transformer_macs(team.experts[0]).without(team.shared_macs)
    ours = transformer_macs(team.delegator).encoder(length) + 64 * 2
    ours = ours + spends.sentence(length, torch.tensor([len(best["tokens"])]), beam=1)
    assert ours.item() == counter.get_total_flops() / 2


def test_experts_weigh_together_what_is_asked_for_in_the_shared_layers(loaded):
    team, _ = loaded
    source, previous = torch.tensor([[5, 6, 2], [7, 8, 2]]), torch.tensor([[2, 9], [2, 10]])
    weight = team.shared.encoder.layers[0].fc1.weight

    def gradient(factor):
        team.shared_gradient = factor
        output = team(source, torch.tensor([3, 3]), previous)
        loss = sum(logits.square().mean() for logits in output.experts)
        return torch.autograd.grad(loss, weight)[0]

    assert team.shared_gradient == 0.5  # 1 / k
    full = gradient(1.0)
    assert full.abs().sum() > 0
    assert torch.allclose(gradient(0.5), full / 2, atol=1e-7)
    assert gradient(0.0).abs().sum() == 0
    team.shared_gradient = 0.5


def test_each_sentence_by_its_own_expert_is_as_by_all(loaded):
    team, _ = loaded
    source = torch.tensor([[1, 5, 6, 2], [7, 8, 9, 2], [1, 1, 5, 2]])
    inputs = source, source.ne(1).sum(1), torch.tensor([[2, 9], [2, 10], [2, 4]])
    with torch.no_grad():
        whole = team(*inputs)
        apart = team(*inputs, portion=torch.tensor([1, 0, 1]))
    expected = torch.stack([whole.experts[1][0], whole.experts[0][1], whole.experts[1][2]])
    assert torch.allclose(apart.experts[0], expected, atol=1e-5)


def test_decode_counts_shared_layers_once(said, shared, corpus, tmp_path):
    from translation.evaluation.systems import routed_systems
    from translation.evaluation.translations import Translations

    out = tmp_path / "test.json"
    status, _, error = said(
        *("decode", corpus.binary, "--path", shared, "--cpu", "--beam", "2", "--num-workers", "0"),
        *("--reference", corpus.text / "test.en", "--user-dir", "translation", "--out", out),
    )
    assert status == 0, error
    translations = Translations.load(out)
    assert translations.selection.shared_macs[5] == 0  # the empty line
    assert min(m for row, m in enumerate(translations.selection.shared_macs) if row != 5) > 0
    system = routed_systems(translations)["CoE"]
    rows = range(len(translations))
    expert = [
        translations.experts()[j].macs[i] for i, j in enumerate(system.selected_expert.tolist())
    ]
    expected = sum(
        translations.selection.macs[i] + expert[i] - translations.selection.shared_macs[i]
        for i in rows
    )
    assert system.at(math.inf).macs == pytest.approx(expected / len(translations))
    translations.selection.shared_macs.pop()
    with pytest.raises(ValueError, match="23 shared_macs of selection for 24 sentences"):
        translations.check("x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--shared-encoder-layers", "1"),
            "the delegator has 32, the experts 64; give --delegator-embed-dim the experts' dimension",
        ),
        ((*SHARED[2:], "--shared-encoder-layers", "3"), "the delegator has 2 encoder layers"),
        ((*SHARED, "--expert-encoder-layers", "0,2"), "must be whole numbers above 0"),
        (("--shared-encoder-layers", "-1"), "--shared-encoder-layers must be at least 0, got -1"),
        (("--shared-encoder-gradient", "1"), "is of shared layers: give --shared-encoder-layers"),
        ((*SHARED, "--shared-encoder-gradient", "-1"), "must be in [0, 1000], got -1.0"),
        (
            (*SHARED, "--encoder-layerdrop", "0.1"),
            "--encoder-layerdrop drops layers of one network",
        ),
    ],
)
def test_what_cannot_be_shared_is_said(shell, corpus, tmp_path, options, message):
    words = [*shell.PLUGIN, *shell.TRAIN, *shell.TEAM, *options, "--max-update", "1"]
    done = shell("fairseq-train", corpus.binary, *words, "--save-dir", tmp_path, fails=True)
    assert message in done.log


OVERRIDES = ["hand_over.encoder_layers=1", "delegator.embed_dim=64", "delegator.encoder_layers=2"]
OVERRIDES += ["delegator.ffn_embed_dim=32", "experts.embed_dim=64", "experts.ffn_embed_dim=128"]
OVERRIDES += ["experts.encoder_layers=2", "experts.decoder_layers=2", "experts.attention_heads=2"]
OVERRIDES += [
    "training.normalize_before=false",
    "delegator.decoder_layers=1",
    "num_experts=2",
    "controls={}",
    "ensembles={}",
]


def test_a_recipe_counts_what_is_built(loaded):
    team, task = loaded
    entries = len(task.source_dictionary)
    recipe = load_recipe("demo", [*OVERRIDES, f"vocabulary.size={entries - 4}"])
    by_name = {part.name: part for part in parts(recipe, tokens=6)}
    assert by_name["team, no exits"].parameters == sum(p.numel() for p in team.parameters())
    from translation.generation.macs import transformer_macs

    beam = recipe.generation.beam
    delegator = transformer_macs(team.delegator)
    expert = transformer_macs(team.experts[0]).without(team.shared_macs).of_lengths(6, 6, beam)
    selects = delegator.encoder(torch.tensor([6])).item() + 64 * 2
    assert by_name["delegator"].macs == delegator.of_lengths(6, 6, beam) + 64 * 2
    assert by_name["team, no exits"].macs == selects + expert


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("delegator.embed_dim=32", "but the delegator's have 32, the experts' 64"),
        ("hand_over.encoder_layers=3", "3 layers are shared, but one network has 2"),
        ("hand_over.trunk_gradient=-1", "hand_over.trunk_gradient must be in [0, 1000]"),
        ("hand_over={trunk_gradient: 1.0}", "give hand_over.encoder_layers too"),
    ],
)
def test_a_recipe_that_cannot_share_is_refused(changed, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_recipe("demo", [*OVERRIDES, changed])
    assert message in str(error.value)


def test_the_recipe_says_it_to_fairseq_train(tmp_path):
    from translation.run import Run
    from translation.training.calls import train_team

    recipe = load_recipe("demo", [*OVERRIDES, "hand_over.trunk_gradient=0.25"])
    words = train_team(Run(tmp_path, recipe))
    place = words.index("--shared-encoder-layers")
    assert words[place : place + 4] == [
        "--shared-encoder-layers", "1", "--shared-encoder-gradient", "0.25",
    ]  # fmt: skip
