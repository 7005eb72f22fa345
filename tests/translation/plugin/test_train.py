"""fairseq-train and fairseq-validate with the plugin: losses, resume, two processes, wrong options."""

import shutil

import pytest
import torch


@pytest.fixture(scope="session")
def train(corpus, shell):
    def call(folder, *options, given=(), **how):
        words = [*shell.PLUGIN, *shell.TRAIN, *shell.TEAM, "--save-dir", folder, *options]
        return shell("fairseq-train", corpus.binary, *words, **how)

    return call


@pytest.fixture(scope="session")
def validate(corpus, shell, team):
    def call(*options, path=team / "checkpoint_last.pt", size="24", **how):
        return shell(
            *("fairseq-validate", corpus.binary, *shell.PLUGIN, "--path", path, "--cpu"),
            *("--num-workers", "0", "--batch-size", size, *options),
            **how,
        )

    return call


def saved(folder):
    return torch.load(folder / "checkpoint_last.pt", weights_only=True)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_training_learns_and_says_what_it_does(team):
    log = (team / "log").read_text()
    valid = [line for line in log.splitlines() if " valid on 'valid' subset" in line]
    first, last = (float(line.split("| nll_loss ")[1].split()[0]) for line in (valid[0], valid[-1]))
    assert last < first - 0.5
    train = [line for line in log.splitlines() if "| rough_nll" in line and "| focus" in line]
    assert float(train[0].split("| focus ")[1].split()[0]) < 0.6
    assert float(train[-1].split("| focus ")[1].split()[0]) == 0.6
    for name in ("expert_nll", "oracle_nll", "selection_loss", "selection_accuracy", "load_1"):
        assert f"| {name} " in train[-1]


def test_the_checkpoint_loads_with_weights_only(team):
    state = saved(team)
    assert state["cfg"]["model"]["num_experts"] == 2
    assert "experts.1.decoder.layers.0.fc1.weight" in state["model"]
    assert "experts.1.decoder.layers.1.fc1.weight" not in state["model"]  # experts differ in depth
    assert "selection.linear.weight" in state["model"]


def test_resume_ends_where_an_uninterrupted_training_does(train, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ("--max-update", "12", "--disable-validation", "--save-interval-updates", "7")
    train(whole, *options)
    parts.mkdir()
    shutil.copy(
        whole / "checkpoint_2_7.pt", parts / "checkpoint_last.pt"
    )  # inside the second epoch
    train(parts, *options)
    assert equal(saved(whole)["model"], saved(parts)["model"])


@pytest.mark.parametrize("scope", ["queue", "dataset"])
def test_resume_keeps_the_portions(train, generate, tmp_path, scope):
    """Their state goes with the checkpoint, is left out of averages, and does not disturb generation."""
    from translation.plugin.checkpoints import average

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = (
        *("--portion-scope", scope, "--shared-start", "0", "--focus-warmup", "0"),
        *("--max-update", "16", "--disable-validation", "--save-interval-updates", "9"),
    )
    options += ("--portion-queue-size", "64") if scope == "queue" else ()
    train(whole, *options)
    parts.mkdir()
    shutil.copy(whole / "checkpoint_2_9.pt", parts / "checkpoint_last.pt")
    middle = saved(parts)["model"]
    train(parts, *options)
    one, other = saved(whole), saved(parts)
    assert equal(one["model"], other["model"])
    if scope == "queue":
        assert one["model"]["partition.queue"].isfinite().all()
    else:  # cut once all sentences were seen, at the beginning of the second epoch
        assert (middle["partition.table_portion"] >= 0).all()
        counts = middle["partition.table_portion"].bincount()
        assert counts.tolist() == [150, 150]
    assert not [key for key in average([one, other])["model"] if key.startswith("partition")]
    assert len(generate(path=whole / "checkpoint_last.pt").lines("H")) == 24


def test_half_precision(train, tmp_path):
    """Optimiser and shared start go on in float32. Flat gradients need a GPU; bfloat16: test_processes."""
    train(
        tmp_path,
        *("--fp16", "--fp16-no-flatten-grads", "--max-update", "4", "--disable-validation"),
    )
    model = saved(tmp_path)["model"]
    first, second = (model[f"experts.{j}.encoder.layers.0.fc1.weight"] for j in range(2))
    assert torch.equal(first, first.half().float())  # saved as float32, as fairseq does
    assert all(value.isfinite().all() for value in model.values())
    assert not torch.equal(first, second)


def test_no_sentence_is_left_out(validate):
    """fairseq itself leaves out a last batch of 4, 7 or 9: not a multiple of 8."""
    whole = validate().valid()
    assert whole["bsz"] == 24
    for size in ("5", "17"):
        assert validate(size=size).valid()["nll_loss"] == whole["nll_loss"]


def test_update_freq_and_other_kinds_of_everything(train, tmp_path):
    options = ("--max-update", "3", "--disable-validation", "--update-freq", "2", "--sentence-avg")
    for number, more in enumerate(
        [
            ("--selection-labels", "soft_balanced", "--agreement", "distil"),
            ("--selection-labels", "soft", "--agreement", "js", "--portion-scores", "sum"),
            (
                "--selection-labels",
                "hard",
                "--portion-scope",
                "queue",
                "--portion-queue-size",
                "64",
            ),
            ("--agreement", "mutual", "--no-choice-variance", "--portion-scores", "random"),
        ]
    ):
        folder = tmp_path / str(number)
        train(folder, *options, *more)
        assert saved(folder)["optimizer_history"][-1]["num_updates"] == 3


def test_bleu_in_validation_and_resume_of_it(train, tmp_path):
    options = ("--eval-bleu", "--eval-bleu-args", '{"beam": 2, "max_len_b": 10}')
    done = train(tmp_path, *options, "--max-update", "5")
    assert "| bleu " in done.log
    assert "R-" not in done.out
    assert saved(tmp_path)
    assert "| bleu " in train(tmp_path, *options, "--max-update", "8").log


def test_validation_shows_the_routers(validate):
    loss = {
        router: validate("--router", router).valid()["nll_loss"]
        for router in ("learned", "random", "always-0", "always-1", "oracle", "ensemble")
    }
    for router in ("learned", "always-0", "always-1"):
        assert loss["oracle"] <= loss[router]
    assert min(loss["always-0"], loss["always-1"]) < loss["random"]
    assert loss["ensemble"] < loss["always-1"]  # the shallower one
    figures = validate().valid()
    assert figures["expert_nll"] == pytest.approx(
        (loss["always-0"] + loss["always-1"]) / 2, abs=2e-3
    )
    assert figures["oracle_nll"] == pytest.approx(loss["oracle"], abs=2e-3)
    assert figures["load_0"] + figures["load_1"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--router", "always-7"), "there are 2 experts, numbered 0 to 1"),
        (("--num-experts", "0"), "--num-experts must be at least 1, got 0"),
        (("--num-experts", "2000000000"), "--num-experts must be at most 1024, got 2000000000"),
        (("--expert-decoder-layers", "1,2,3"), "layers for 3 experts, but --num-experts is 2"),
        (("--expert-decoder-layers", "1,x"), "must be whole numbers above 0 such as 6,4,2"),
        (("--focus", "1.5"), "focus must be in [0, 1], got 1.5"),
        (("--update-freq", "0"), "--update-freq must be at least 1, got 0"),
        (("--max-update", "0"), "the training has no end: give --max-update"),
        (("--label-smoothing", "1"), "--label-smoothing must be in [0, 1), got 1"),
        (("--portion-scope", "queue"), "scope 'queue' needs queue_size of at least 1, got 0"),
        (
            ("--portion-scope", "dataset", "--max-source-positions", "5"),
            "of 300 training sentences are over the length limit (5, 1024), and all must come up",
        ),
    ],
)
def test_wrong_options_are_errors_before_training(train, tmp_path, options, message):
    done = train(tmp_path, "--max-update", "3", *options, fails=True)
    assert message in done.log
    assert list(tmp_path.iterdir()) == []


def test_the_criterion_needs_a_team(corpus, shell, tmp_path):
    done = shell(
        *("fairseq-train", corpus.binary, *shell.PLUGIN, *shell.TRAIN, "--max-update", "3"),
        *("--arch", "transformer_tiny", "--criterion", "coe_label_smoothed_cross_entropy"),
        *("--save-dir", tmp_path),
        fails=True,
    )
    assert "it needs --task coe_translation and an architecture coe_transformer" in done.log


def test_other_dictionaries_than_the_checkpoints(validate, corpus, shell, tmp_path, team):
    shutil.copytree(corpus.binary, tmp_path / "bin")
    for language in ("de", "en"):
        with (tmp_path / "bin" / f"dict.{language}.txt").open("a", encoding="utf-8") as file:
            file.write("Wort 1\n")
    done = shell(
        *("fairseq-generate", tmp_path / "bin", *shell.PLUGIN, "--cpu"),
        *("--path", team / "checkpoint_last.pt"),
        fails=True,
    )
    assert "the source dictionary does not match the checkpoint: it has" in done.log
    state = saved(team)
    state["task_state"] = {}  # as from before the task knew its dictionaries
    torch.save(state, tmp_path / "old.pt")
    done = shell(
        *("fairseq-generate", tmp_path / "bin", *shell.PLUGIN, "--cpu"),
        *("--path", tmp_path / "old.pt"),
        fails=True,
    )
    assert "the encoder's dictionary does not match the checkpoint: it has" in done.log


def test_a_dictionary_of_the_same_size_in_another_order(corpus, shell, tmp_path, team):
    shutil.copytree(corpus.binary, tmp_path / "bin")
    file = tmp_path / "bin" / "dict.en.txt"
    first, second, *rest = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join((second, first, *rest)), encoding="utf-8")
    done = shell(
        *("fairseq-generate", tmp_path / "bin", *shell.PLUGIN, "--cpu"),
        *("--path", team / "checkpoint_last.pt"),
        fails=True,
    )
    assert "the target dictionary does not match the checkpoint" in done.log
    assert "with as many, but others or in another order" in done.log


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (23, "train: source and target have different numbers of sentences; check the texts with"),
        (0, "train: source or target has no sentences; check the texts with coe-translation check"),
    ],
)
def test_data_that_do_not_belong_together(corpus, shell, tmp_path, lines, message):
    """Found before training, also where the texts were not checked."""
    for language, keep in (("de", 24), ("en", lines)):
        text = (corpus.text / f"test.{language}").read_text(encoding="utf-8").splitlines(True)
        (tmp_path / f"text.{language}").write_text("".join(text[:keep]), encoding="utf-8")
    for split in ("train", "valid"):
        shell(
            *("fairseq-preprocess", "-s", "de", "-t", "en", f"--{split}pref", tmp_path / "text"),
            *("--srcdict", corpus.binary / "dict.de.txt", "--tgtdict"),
            *(corpus.binary / "dict.en.txt", "--destdir", tmp_path / "bin"),
        )
    done = shell(
        *("fairseq-train", tmp_path / "bin", *shell.PLUGIN, *shell.TRAIN, *shell.TEAM),
        *("--save-dir", tmp_path / "out", "--max-update", "2", "--disable-validation"),
        fails=True,
    )
    assert message in done.log
    assert not list((tmp_path / "out").glob("*"))


def test_a_checkpoint_from_before_an_option(validate, generate, team, tmp_path):
    """Options that a checkpoint lacks have their default."""
    state = saved(team)
    for part, name in (
        ("model", "delegator_dropout"),
        ("task", "routes"),
        ("criterion", "agreement"),
    ):
        del state["cfg"][part][name]
    torch.save(state, tmp_path / "old.pt")
    assert generate(path=tmp_path / "old.pt").hypotheses() == generate().hypotheses()
    ours = validate().valid()["nll_loss"]
    assert validate(path=tmp_path / "old.pt").valid()["nll_loss"] == ours
