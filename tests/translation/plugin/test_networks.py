"""One network of a team is a plain fairseq model, before, in and after training."""

import pytest
import torch

from translation.plugin.losses import sentence_loss


@pytest.fixture(scope="session")
def one_expert(tmp_path_factory, corpus, shell):
    """A team of one, trained a little."""
    folder = tmp_path_factory.mktemp("one")
    words = [*shell.PLUGIN, *shell.TRAIN, *shell.TEAM, "--num-experts", "1"]
    shell("fairseq-train", corpus.binary, *words, "--save-dir", folder, "--max-update", "20")
    return folder / "checkpoint_last.pt"


def take(path, name, to):
    from translation.plugin.checkpoints import take_network

    torch.save(take_network(torch.load(path, weights_only=True), name), to)
    return to


def by_fairseq_alone(corpus, shell, path):
    return shell(
        *("fairseq-generate", corpus.binary, "--task", "translation", "--path", path),
        *("--cpu", "--beam", "3", "--num-workers", "0"),
    )


def test_one_expert_above_the_top_is_the_plain_transformer(
    one_expert, generate, corpus, shell, tmp_path
):
    plain = by_fairseq_alone(corpus, shell, take(one_expert, "expert-0", tmp_path / "plain.pt"))
    ours = generate("--threshold", "1.01", path=one_expert)
    assert plain.lines("R") == []
    for kind in "HDP":
        theirs = plain.table(kind)
        assert len(theirs) == 24
        theirs[5] = ours.table(kind)[5]  # the empty line, which fairseq makes words of
        assert ours.table(kind) == theirs, kind  # to the last digit


def test_delegator_and_experts_of_other_depth_load_without_the_plugin(
    team, generate, corpus, shell, tmp_path, apart
):
    for name, router in (
        ("delegator", ("--threshold", "0")),
        ("expert-1", ("--router", "always-1")),
    ):
        path = take(team / "checkpoint_last.pt", name, tmp_path / f"{name}.pt")
        theirs = by_fairseq_alone(corpus, shell, path).hypotheses()
        ours = generate(*router).hypotheses()
        assert {n: theirs[n] for n in theirs if n != 5} == {n: ours[n] for n in ours if n != 5}
    done = apart(  # in a process that knows nothing of us
        *("fairseq-generate", corpus.binary, "--path", tmp_path / "expert-1.pt", "--cpu"),
        *("--beam", "3", "--task", "translation"),
        cwd=tmp_path,
    )
    assert "coe" not in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("H-")]


def test_ctranslate2s_own_converter_reads_what_is_taken(team, corpus, tmp_path):
    from ctranslate2.converters import FairseqConverter

    for name in ("delegator", "expert-1"):
        path = take(team / "checkpoint_last.pt", name, tmp_path / f"{name}.pt")
        out = FairseqConverter(str(path), str(corpus.binary)).convert(str(tmp_path / name))
        assert (tmp_path / name / "model.bin").stat().st_size > 1000, out


def test_what_is_not_in_a_checkpoint(team, plain, tmp_path):
    with pytest.raises(
        ValueError, match=r"no network 'expert-2' .* known: delegator, expert-0, exp"
    ):
        take(team / "checkpoint_last.pt", "expert-2", tmp_path / "x.pt")
    with pytest.raises(ValueError, match="its architecture is 'transformer_tiny'"):
        take(plain, "expert-0", tmp_path / "x.pt")


def test_the_loss_of_a_sentence_is_fairseqs():
    from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss

    torch.manual_seed(0)
    logits, target = torch.randn(5, 7, 11), torch.randint(2, 11, (5, 7))
    target[1, 4:] = 1
    ours = sentence_loss(logits, target, pad=1, smoothing=0.1)
    for row in range(5):
        loss, nll = label_smoothed_nll_loss(
            logits[row].log_softmax(-1), target[row], 0.1, ignore_index=1
        )
        count = int(target[row].ne(1).sum())
        assert ours.smoothed[row].item() == pytest.approx(loss.item() / count, rel=1e-5)
        assert ours.log_likelihood[row].item() == pytest.approx(-nll.item() / count, rel=1e-5)


@pytest.mark.parametrize("sentence_avg", [False, True])
def test_the_gradient_of_one_expert_is_that_of_fairseqs_criterion(corpus, shell, sentence_avg):
    """Weighted by tokens as fairseq does; with --sentence-avg every sentence counts the same."""
    import fairseq.tasks
    from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
    from omegaconf import OmegaConf

    from translation import register
    from translation.plugin.criterion import (
        CoELabelSmoothedCrossEntropy,
        CoELabelSmoothedCrossEntropyConfig,
    )
    from translation.plugin.model import CoETransformerConfig
    from translation.plugin.task import CoETranslationConfig

    register()
    config = CoETranslationConfig(data=str(corpus.binary))
    config._name = "coe_translation"
    config.train_subset, config.dataset_impl, config.required_seq_len_multiple = "train", None, 1
    task = fairseq.tasks.setup_task(OmegaConf.structured(config))
    options = {**vars(CoETransformerConfig()), "num_experts": 1, "dropout": 0.0}
    options["_name"] = "coe_transformer_tiny"
    options |= {"max_source_positions": 1024, "max_target_positions": 1024}
    torch.manual_seed(0)
    model = task.build_model(OmegaConf.create(options))
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    sample = dataset.collater([dataset[i] for i in range(8)])

    settings = CoELabelSmoothedCrossEntropyConfig(label_smoothing=0.1, focus_warmup=0.0)
    settings.sentence_avg, settings.max_update, settings.max_epoch = sentence_avg, 100, 0
    model.train()
    loss, size, log = CoELabelSmoothedCrossEntropy(settings, task)(model, sample)
    (loss / size).backward()
    ours = [parameter.grad.clone() for parameter in model.experts[0].parameters()]
    assert size == log["sample_size"] == (8 if sentence_avg else sample["ntokens"])

    model.zero_grad()
    plain = LabelSmoothedCrossEntropyCriterion(task, sentence_avg, 0.1)
    if sentence_avg:  # the method's sentence loss is a mean over its tokens, fairseq's a sum
        total = 0
        for i in range(8):
            batch = dataset.collater([dataset[i]])
            value, _, _ = plain(model.experts[0], batch)
            total = total + value / batch["ntokens"] / 8
        total.backward()
    else:
        loss, size, _ = plain(model.experts[0], sample)
        (loss / size).backward()
    for mine, parameter in zip(ours, model.experts[0].parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, atol=1e-5, rtol=1e-4)
