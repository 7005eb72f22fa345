"""The shared start inside fairseq: experts that are one network, then part."""

import shutil

import pytest
import torch


@pytest.fixture(scope="session")
def train(corpus, shell):
    def call(folder, *options, **how):
        words = [*shell.PLUGIN, *shell.TRAIN, *shell.TEAM, "--save-dir", folder]
        more = ("--disable-validation", "--max-update", "8", "--save-interval-updates", "1")
        return shell("fairseq-train", corpus.binary, *words, *more, *options, **how)

    return call


def experts(path):
    """Parameters and buffers of every expert."""
    state = torch.load(path, weights_only=True)["model"]
    return [
        {
            k.removeprefix(f"experts.{j}."): v
            for k, v in state.items()
            if k.startswith(f"experts.{j}.")
        }
        for j in range(2)
    ]


def equal(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


@pytest.fixture(scope="session")
def run(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    train(folder)
    return folder


def test_experts_are_one_for_half_the_training_then_part(run):
    """Default for equal experts; --save-interval-updates keeps every step."""
    steps = {int(path.stem.split("_")[2]): path for path in run.glob("checkpoint_*_*.pt")}
    assert {1, 4, 5, 8} <= set(steps)
    for step, shared in ((1, True), (4, True), (5, False), (8, False)):
        first, second = experts(steps[step])
        assert equal(first, second) == shared, step
    before, after = (experts(steps[step])[0] for step in (1, 4))
    assert not equal(before, after)


def test_momentum_is_shared_too(run):
    """Adam's state of both experts is equal at the split, so neither starts anew."""
    (path,) = run.glob("checkpoint_*_4.pt")
    moments = torch.load(path, weights_only=True)["last_optimizer_state"]["state"]
    first, _ = experts(path)
    shared_once = {
        value.data_ptr() for key, value in first.items() if key.endswith(("weight", "bias"))
    }
    size = len(shared_once)  # the experts are the last parameters of the team
    ordered = [moments[place] for place in sorted(moments)]
    for expert, second in zip(ordered[-2 * size : -size], ordered[-size:], strict=True):
        assert torch.equal(expert["exp_avg_sq"], second["exp_avg_sq"])
        assert expert["exp_avg_sq"].abs().sum() > 0


def test_resume_inside_the_shared_start(run, train, tmp_path):
    (path,) = run.glob("checkpoint_*_2.pt")
    shutil.copy(path, tmp_path / "checkpoint_last.pt")
    train(tmp_path)
    for expert, second in zip(
        experts(run / "checkpoint_last.pt"), experts(tmp_path / "checkpoint_last.pt"), strict=True
    ):
        assert equal(expert, second)


def test_validating_does_not_make_experts_one(run, corpus, shell):
    words = (*shell.PLUGIN, "--path", run / "checkpoint_last.pt", "--cpu", "--batch-size", "24")
    loss = {
        router: shell(
            "fairseq-validate", corpus.binary, *words, "--router", router, "--num-workers", "0"
        ).valid()["loss"]
        for router in ("always-0", "always-1")
    }
    assert loss["always-0"] != loss["always-1"]


def test_a_trained_team_does_not_start_as_one(run, train, tmp_path):
    """Its experts differ: one of them would get the other's gradient."""
    start = (
        "--restore-file",
        run / "checkpoint_last.pt",
        "--reset-optimizer",
        "--reset-dataloader",
    )
    more = ("--reset-lr-scheduler", "--reset-meters")
    done = train(tmp_path, *start, *more, "--max-update", "30", fails=True)
    assert "2 experts as one network, but they are not equal" in done.log
    train(tmp_path, *start, *more, "--max-update", "9", "--shared-start", "0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shared-start", "1"), "--shared-start must be in [0, 1), got 1"),
        (("--shared-start", "-0.5"), "--shared-start must be in [0, 1), got -0.5"),
        (
            ("--shared-start", "0.5", "--expert-decoder-layers", "2,1"),
            "--shared-start needs equal experts",
        ),
        (("--max-update", "0"), "one network for 50% of the training, but the training has no end"),
    ],
)
def test_wrong_shared_starts(train, tmp_path, options, message):
    assert message in train(tmp_path, *options, fails=True).log
