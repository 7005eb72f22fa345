"""Portions of groups that the user knows: read beside the sentences, kept by shuffling, skips and resume."""

import shutil

import pytest
import torch

from translation.plugin.groups import follow, read_groups

NAMES = ["fr", "de", "", "de", "cs"]


@pytest.fixture
def text(tmp_path):
    def write(names=NAMES):
        path = tmp_path / "train.groups"
        path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        return path

    return write


def test_groups_are_experts_in_alphabetical_order(text):
    groups = read_groups(text(), None, num_experts=3, num_sentences=5)
    assert groups.expert.tolist() == [2, 1, -1, 1, 0]
    assert groups.of(torch.tensor([4, 0, 2])).tolist() == [0, 2, -1]
    assert not groups.complete
    assert str(groups) == (
        "cs -> expert 0 (1 sentences), de -> expert 1 (2 sentences), fr -> expert 2 (1 sentences), "
        "1 sentences of unknown group"
    )
    assert read_groups(text(["a", "b"]), None, 2, 2).complete


def test_how_far_portions_follow_the_groups(text):
    groups = read_groups(text(), "de=0,fr=1,cs=1", num_experts=2, num_sentences=5)
    counts = groups.counts(torch.arange(5), groups.expert.clamp(min=0), 2)
    assert sum(counts.values()) == 4  # one sentence is of no group
    assert counts["in_portion_0_1"] == 2  # de
    assert follow({key: float(value) for key, value in counts.items()}) == pytest.approx(1)
    mixed = groups.counts(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), 2)
    assert follow({key: float(value) for key, value in mixed.items()}) == 0


def test_more_groups_than_experts_are_put_together_by_size(text):
    names = ["a"] * 2 + ["b"] * 3 + ["c"]
    assert read_groups(text(names), None, 2, 6).expert.tolist() == [1, 1, 0, 0, 0, 1]


def test_the_user_gives_groups_to_experts(text):
    groups = read_groups(text(), "de=0, fr=1,cs=1", num_experts=2, num_sentences=5)
    assert groups.expert.tolist() == [1, 0, -1, 0, 1]
    part = read_groups(text(), "fr=1", num_experts=2, num_sentences=5)  # the others are unknown
    assert part.expert.tolist() == [1, -1, -1, -1, -1]


@pytest.mark.parametrize(
    ("names", "experts", "message"),
    [
        (NAMES[:4], None, r"train\.groups has 4 lines, but the training set has 5 sentences: give"),
        ([""] * 5, None, "names no group: all of its lines are empty"),
        (
            ["de"] * 5,
            None,
            "1 known groups for 2 experts: some would have no portion; use at most 1",
        ),
        (NAMES, "de", "--portion-of must be NAME=EXPERT,... such as de=0,fr=1; got 'de'"),
        (NAMES, "de=one", "--portion-of must be NAME=EXPERT,... such as de=0,fr=1; got 'de=one'"),
        (NAMES, "dee=0", "--portion-of dee=0: no sentence is of group 'dee'; nearest: de"),
        (NAMES, "de=0,de=1", "--portion-of de=0,de=1 names group 'de' twice"),
        (NAMES, "de=2", "--portion-of de=2: there are 2 experts, numbered 0 to 1"),
        (["de", "fr"] * 2 + ["fr"], "de=0,fr=0", r"expert 1 has no sentences: all are of known"),
    ],
)
def test_groups_that_cannot_be_are_an_error(text, names, experts, message):
    with pytest.raises(ValueError, match=message):
        read_groups(text(names), experts, num_experts=2, num_sentences=5)


@pytest.fixture(scope="module")
def by_unit(corpus):
    """Group of every training sentence: whether it is about money."""
    lines = (corpus.text / "train.de").read_text(encoding="utf-8").splitlines()
    path = corpus.text / "train.groups"
    path.write_text("".join("money\n" if "Euro" in line else "other\n" for line in lines))
    return path


@pytest.fixture
def train(corpus, shell, by_unit):
    def call(folder, *options, **how):
        words = [*shell.PLUGIN, *shell.TRAIN, *shell.TEAM, "--save-dir", folder]
        words += ["--portion-groups", by_unit, "--disable-validation", *options]
        return shell("fairseq-train", corpus.binary, *words, **how)

    return call


@pytest.mark.slow
def test_the_delegator_learns_to_tell_the_groups_and_resume_is_equal(train, tmp_path):
    """Also where sentences over the length limit are skipped: groups go by the number of a sentence."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = (
        *("--focus", "1", "--focus-warmup", "0.2", "--shared-start", "0.2", "--max-update", "22"),
        *("--selection-weight", "5"),
        *("--max-source-positions", "10", "--save-interval-updates", "17"),
    )
    done = train(whole, *options)
    assert "portions of known groups: money -> expert 0 (" in done.log
    assert "samples have invalid sizes and will be skipped" in done.log
    accuracy = [
        float(line.split("| selection_accuracy ")[1].split()[0])
        for line in done.log.splitlines()
        if "| selection_accuracy " in line
    ]
    assert accuracy[-1] > 80
    assert "| follow_groups 1 |" in done.log
    parts.mkdir()
    (middle,) = whole.glob("checkpoint_*_17.pt")
    shutil.copy(middle, parts / "checkpoint_last.pt")
    train(parts, *options)
    one, other = (
        torch.load(folder / "checkpoint_last.pt", weights_only=True)["model"]
        for folder in (whole, parts)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--portion-groups", "absent"), "absent: no such file"),
        (("--portion-of", "money=0,othr=1"), "no sentence is of group 'othr'; nearest: other"),
        (("--portion-groups-until", "2"), "known_until must be in [0, 1], got 2"),
    ],
)
def test_wrong_options_are_errors_before_training(train, tmp_path, options, message):
    done = train(tmp_path, "--max-update", "3", *options, fails=True)
    assert message in done.log
    assert list(tmp_path.iterdir()) == []


def test_experts_without_their_groups(corpus, shell, tmp_path):
    done = shell(
        *("fairseq-train", corpus.binary, *shell.PLUGIN, *shell.TRAIN, *shell.TEAM),
        *("--save-dir", tmp_path, "--max-update", "3", "--portion-of", "de=0"),
        fails=True,
    )
    assert "--portion-of gives experts to the groups of --portion-groups: give both" in done.log


class RunsAll:
    """A team whose experts all run on all sentences."""

    training = True

    def __init__(self, team):
        self.team = team

    def __call__(self, **inputs):
        return self.team(**{**inputs, "portion": None})


@pytest.fixture
def of_groups(corpus, by_unit):
    """A team of two that learns from known groups alone: task, model and criterion."""
    import fairseq.tasks
    from omegaconf import OmegaConf

    from translation import register
    from translation.plugin import criterion
    from translation.plugin.model import CoETransformerConfig
    from translation.plugin.task import CoETranslationConfig

    register()
    config = CoETranslationConfig(data=str(corpus.binary))
    config._name, config.train_subset = "coe_translation", "train"
    config.dataset_impl, config.required_seq_len_multiple = None, 1
    task = fairseq.tasks.setup_task(OmegaConf.structured(config))
    options = {**vars(CoETransformerConfig()), "num_experts": 2, "dropout": 0.0}
    options |= {"_name": "coe_transformer_tiny"}
    options |= {"max_source_positions": 1024, "max_target_positions": 1024}
    model = task.build_model(OmegaConf.create(options)).train()
    settings = criterion.CoELabelSmoothedCrossEntropyConfig(shared_start=0.0, focus=1.0)
    settings.focus_warmup, settings.portion_groups = 0.0, str(by_unit)
    settings.sentence_avg, settings.max_update, settings.max_epoch = False, 100, 0
    loss_of = criterion.CoELabelSmoothedCrossEntropy(settings, task)
    return task, model, loss_of


def test_experts_that_learn_from_their_groups_alone_run_on_them_alone(of_groups):
    """As if all ran on everything: the same loss and gradients, also of an expert without sentences."""
    task, model, loss_of = of_groups
    data, known = task.dataset("train"), loss_of.groups.expert
    mixed = [30, 5, 12, 7, 101]
    assert set(known[mixed].tolist()) == {0, 1}
    alone = known.eq(1).nonzero()[:3, 0].tolist()
    seen: list[int] = []
    for expert in model.experts:
        expert.encoder.register_forward_hook(
            lambda *call: seen.append(call[2]["encoder_out"][0].shape[1])
        )
    for rows in (mixed, alone):
        sample = data.collater([data[i] for i in rows])
        gradients = []
        seen.clear()
        for network in (model, RunsAll(model)):
            model.zero_grad()
            loss, _, _ = loss_of(network, sample)
            loss.backward()
            gradients.append([loss.detach()] + [p.grad.clone() for p in model.parameters()])
        assert sum(seen[:-2]) == len(rows)
        assert seen[-2:] == [len(rows)] * 2
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_an_expert_of_a_group_learns_as_a_network_of_its_own(of_groups):
    """From the mean over its own tokens, whatever part of the batch they are: fairseq's own gradient."""
    from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion

    task, model, loss_of = of_groups
    data, known = task.dataset("train"), loss_of.groups.expert
    loss_of.label_smoothing = 0.1
    first, second = (known.eq(j).nonzero()[:, 0].tolist() for j in (0, 1))
    rows = [*first[:2], *second[:7]]
    loss, size, _ = loss_of(model, data.collater([data[i] for i in rows]))
    (loss / size).backward()
    ours = [[p.grad.clone() for p in expert.parameters()] for expert in model.experts]
    plain = LabelSmoothedCrossEntropyCriterion(task, False, 0.1)
    for expert, own, gradients in zip(model.experts, (first[:2], second[:7]), ours, strict=True):
        model.zero_grad()
        loss, size, _ = plain(expert, data.collater([data[i] for i in own]))
        (loss / size).backward()
        for parameter, gradient in zip(expert.parameters(), gradients, strict=True):
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-3)
