"""Experts that have one decoder and encoders of their own: trained, resumed, taken apart, counted."""

import copy
import shutil

import pytest
import torch

from translation.plugin.checkpoints import load_state, parameters_of, take_network
from translation.recipe import load_recipe
from translation.recipe_networks import parts

SHARED = ("--shared-decoder",)


@pytest.fixture(scope="module")
def train(corpus, shell):
    def run(folder, *options):
        words = [*shell.PLUGIN, *shell.TRAIN, *shell.TEAM, *SHARED, "--max-update", "8"]
        words += ["--disable-validation", "--save-interval-updates", "1", *options]
        shell("fairseq-train", corpus.binary, *words, "--save-dir", folder)
        return folder / "checkpoint_last.pt"

    return run


@pytest.fixture(scope="module")
def shared(train, tmp_path_factory):
    """Checkpoint of a team of two, one network for half of its training, with one decoder."""
    return train(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def loaded(load_team, shared):
    return load_team(shared)


def test_the_decoder_is_of_all_and_the_encoders_are_of_each(shared):
    first, second = (parameters_of(load_state(shared), name) for name in ("expert-0", "expert-1"))
    same = {name for name, value in first.items() if torch.equal(value, second[name])}
    assert {name for name in first if name.startswith("decoder.")} <= same
    assert "encoder.embed_tokens.weight" in same  # tied to the decoder's
    weights = {name for name in first if name.startswith("encoder.layers.") and "weight" in name}
    assert weights
    assert not weights & same


def test_a_training_that_is_resumed_ends_as_one_without_a_stop(shared, train, tmp_path):
    (state,) = shared.parent.glob("checkpoint_*_5.pt")
    shutil.copy(state, tmp_path / "checkpoint_last.pt")
    whole, resumed = (load_state(path)["model"] for path in (shared, train(tmp_path)))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_network_that_is_taken_out_is_whole(shared, generate, corpus, shell, tmp_path):
    path = tmp_path / "expert-1.pt"
    torch.save(take_network(load_state(shared), "expert-1"), path)
    plain = shell(
        *("fairseq-generate", corpus.binary, "--task", "translation", "--path", path),
        *("--cpu", "--beam", "3", "--num-workers", "0"),
    ).hypotheses()
    ours = generate("--router", "always-1", path=shared).hypotheses()
    assert {n: ours[n] for n in ours if n != 5} == {n: plain[n] for n in plain if n != 5}


def test_inspect_says_what_is_shared(shared, team, said):
    assert "\nshared_decoder True\n" in said("inspect", shared)[1]
    assert "shared" not in said("inspect", team / "checkpoint_last.pt")[1]


BATCH = torch.tensor([[1, 5, 6, 2], [7, 8, 9, 2], [1, 1, 5, 2]])


@pytest.mark.parametrize("portion", [[1, 0, 1], [1, 1, 1], [0, 0, 1]])
def test_each_sentence_by_its_own_expert_is_as_by_all(loaded, portion):
    team, _ = loaded
    inputs = BATCH, BATCH.ne(1).sum(1), torch.tensor([[2, 9], [2, 10], [2, 4]])
    place = torch.tensor(portion)
    whole = torch.stack(team(*inputs).experts, 1)[torch.arange(3), place]
    (apart,) = team(*inputs, portion=place).experts
    assert torch.allclose(apart, whole, atol=1e-5)
    weights = [*team.experts.parameters()]
    expected, ours = (
        torch.autograd.grad(logits.square().mean(), weights, allow_unused=True)
        for logits in (whole, apart)
    )
    for wanted, given, weight in zip(expected, ours, weights, strict=True):
        wanted = torch.zeros_like(weight) if wanted is None else wanted
        assert torch.allclose(given, wanted, atol=1e-5)


def test_without_it_experts_have_decoders_of_their_own(loaded):
    team, _ = loaded
    other = copy.deepcopy(team)
    assert team.shares_decoder
    assert other.shares_decoder  # a copy shares its own
    other.experts[1].decoder = copy.deepcopy(other.experts[1].decoder)
    assert not other.shares_decoder


ALL_LAYERS = ("--shared-encoder-layers", "2", "--delegator-encoder-layers", "2")
ALL_LAYERS += ("--delegator-embed-dim", "64")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--expert-decoder-layers", "1,2", "--shared-start", "0"),
            "have as many layers in it, but theirs are of 1, 2 layers",
        ),
        (
            (*ALL_LAYERS, "--delegator-ffn-embed-dim", "32"),
            "with 2 of 2 encoder layers shared, too, all experts would be one network",
        ),
    ],
)
def test_what_cannot_be_shared_is_said(shell, corpus, tmp_path, options, message):
    words = [*shell.PLUGIN, *shell.TRAIN, *shell.TEAM, *SHARED, *options, "--max-update", "1"]
    done = shell("fairseq-train", corpus.binary, *words, "--save-dir", tmp_path, fails=True)
    assert message in done.log


OVERRIDES = ["hand_over.decoder=true", "experts.embed_dim=64", "experts.ffn_embed_dim=128"]
OVERRIDES += ["experts.encoder_layers=2", "experts.decoder_layers=2", "experts.attention_heads=2"]
OVERRIDES += ["delegator.embed_dim=32", "delegator.ffn_embed_dim=64", "num_experts=2"]
OVERRIDES += ["delegator.encoder_layers=1", "delegator.decoder_layers=1"]
OVERRIDES += ["controls={}", "ensembles={}", "training.normalize_before=false"]


def test_a_recipe_counts_what_is_built(loaded):
    team, task = loaded
    size = f"vocabulary.size={len(task.source_dictionary) - 4}"
    (ours,) = (
        part.parameters for part in parts(load_recipe("demo", [*OVERRIDES, size]), tokens=6)
        if part.name == "team, no exits"
    )  # fmt: skip
    assert ours == sum(p.numel() for p in team.parameters())


@pytest.mark.parametrize("normalize_before", [True, False])
def test_a_recipe_counts_embeddings_once_whatever_else_is_shared(normalize_before):
    """One expert's encoder layers beside the first are all that a second expert adds."""
    norm = f"training.normalize_before={str(normalize_before).lower()}"
    layers = ["hand_over.encoder_layers=1", "delegator.embed_dim=64", "delegator.encoder_layers=2"]

    def parameters(num_experts, *more):
        overrides = [*OVERRIDES, norm, *more, f"num_experts={num_experts}"]
        by_name = {part.name: part.parameters for part in parts(load_recipe("demo", overrides), 6)}
        return by_name["team, no exits"]

    d, inner = 64, 128
    layer = 4 * (d * d + d) + 2 * d * inner + inner + d + 4 * d
    norms = 2 * d if normalize_before else 0
    assert parameters(3) - parameters(2) == 2 * layer + norms + 32 + 1  # and the selection's row
    assert parameters(3, *layers) - parameters(2, *layers) == layer + norms + 64 + 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            "experts=[{decoder_layers: 1}, {decoder_layers: 2}]",
            "hand_over.decoder: experts that share a decoder have as many layers in it, but theirs",
        ),
        ("hand_over={decoder: true, encoder_layers: 2}", "all experts would be one network"),
        ("hand_over.decoder=maybe", "hand_over.decoder"),
    ],
)
def test_a_recipe_that_cannot_share_is_refused(changed, message):
    sizes = "embed_dim: 64, ffn_embed_dim: 128, encoder_layers: 2, attention_heads: 2"
    changed = changed.replace("{decoder_layers", "{" + sizes + ", decoder_layers")
    wide = ["delegator.embed_dim=64", "delegator.encoder_layers=2"]
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_recipe("demo", [*OVERRIDES, *wide, changed])
    assert message in str(error.value)


def test_the_recipe_says_it_to_fairseq_train(tmp_path):
    from translation.run import Run
    from translation.training.calls import train_team

    words = train_team(Run(tmp_path, load_recipe("demo", OVERRIDES)))
    assert "--shared-decoder" in words
    plain = train_team(Run(tmp_path, load_recipe("demo", [*OVERRIDES, "hand_over.decoder=false"])))
    assert [word for word in words if word != "--shared-decoder"] == plain
