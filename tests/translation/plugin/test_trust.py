"""Nothing that a checkpoint holds runs, whichever command loads it; and damaged ones are said in one line.

Each attack would write a file; that it is not there is the test.
"""

import argparse
import copy
import os
import random

import pytest
import torch

from translation.plugin.checkpoints import load_state
from translation.plugin.trust import Loaded, architectures, check_configuration, check_direction


@pytest.fixture(scope="session")
def states(team, plain, shell):
    """The state of a team and of a plain transformer; the plugin is registered."""
    import translation

    translation.register()
    return {"team": load_state(team / "checkpoint_last.pt"), "plain": load_state(plain)}


class Attack:
    """A text that writes a file when it is evaluated."""

    def __init__(self, folder):
        self.file = folder / "ran"
        self.code = f"__import__('pathlib').Path({str(self.file)!r}).touch()"


@pytest.fixture
def attack(tmp_path):
    planted = Attack(tmp_path)
    eval(planted.code)  # that it can run is part of the test
    assert planted.file.exists()
    planted.file.unlink()
    yield planted
    assert not planted.file.exists()


def section(name, **options):
    def change(state, code):
        state["cfg"][name] = {key: value.format(code=code) for key, value in options.items()}

    return change


def option(part, key, value="{code}"):
    def change(state, code):
        stored = state["cfg"][part]
        stored = stored if isinstance(stored, dict) else vars(stored)
        stored[key] = value.format(code=code) if isinstance(value, str) else value

    return change


def older(**options):
    """As fairseq stored checkpoints before 0.10: every option in one Namespace."""

    def change(state, code):
        flat = {**vars(state["cfg"]["model"]), "task": "translation", "arch": "transformer"}
        flat |= {key: value.format(code=code) for key, value in options.items()}
        state["cfg"], state["args"] = None, argparse.Namespace(**flat)

    return change


def meter(state, code):
    state["extra_state"]["metrics"] = {"default": [(1, "x", "MetersDict", {})]}


ATTACKS = {
    "wav2vec2": (
        section("model", _name="wav2vec2", conv_feature_layers="{code}"),
        "its model is 'wav2vec2', and of what a checkpoint names only what this toolkit knows",
    ),
    "hubert": (
        section("model", _name="hubert", conv_feature_layers="{code}"),
        "its model is 'hubert'",
    ),
    "fconv": (section("model", arch="fconv", encoder_layers="{code}"), "its model is 'fconv'"),
    "a name in another place": (
        section("model", _name="transformer", arch="fconv", encoder_layers="{code}"),
        "its model is 'fconv'",
    ),
    "no name": (section("model", conv_feature_layers="{code}"), "its model is None"),
    "a model within": (
        lambda state, code: state["cfg"].update(model={"fconv": {"encoder_layers": code}}),
        "its model is None",
    ),
    "a task": (
        section("task", _name="audio_pretraining", data="{code}"),
        "its task is 'audio_pretraining'",
    ),
    "a task in another place": (
        option("task", "task", "multilingual_translation"),
        "its task is 'mul",
    ),
    "a criterion": (
        section("criterion", _name="ctc", wer_args="{code}"),
        "its criterion is 'ctc'",
    ),
    "a criterion as a word": (
        lambda state, code: state["cfg"].update(criterion="ctc"),
        "its criterion is 'ctc'",
    ),
    "a bpe": (section("bpe", _name="hf_byte_bpe", bpe_merges="{code}"), "its bpe is 'hf_byte_bpe'"),
    "a tokenizer": (section("tokenizer", _name="{code}"), 'its tokenizer is "__import__'),
    "an environment": (
        option("common", "tensorboard_logdir", "${{oc.env:HOME}}"),
        "its option tensorboard_logdir is '${oc.env:HOME}'; nothing is looked up",
    ),
    "a meter": (meter, "it stores a meter 'MetersDict'; known: AverageMeter"),
    "a key that is no text": (
        lambda state, code: state["cfg"]["common"].update({7: code}),
        "its configuration has the key 7, which is no text",
    ),
}
PLAIN_ATTACKS = {
    "adaptive softmax": (
        option("model", "adaptive_softmax_cutoff"),
        'its option adaptive_softmax_cutoff is "__import__',
    ),
    "attention": (
        option("model", "decoder_xformers_att_config"),
        "its option decoder_xformers_att_config is",
    ),
    "nested": (
        option("model", "decoder", {"xformers_att_config": "__import__('os')"}),
        "its option xformers_att_config is",
    ),
    "embeddings": (
        option("model", "encoder_embed_path", "/dev/zero"),
        "its option encoder_embed_path names a file, '/dev/zero'",
    ),
    "older, softmax": (
        older(adaptive_softmax_cutoff="{code}"),
        "its option adaptive_softmax_cutoff",
    ),
    "older, architecture": (
        older(arch="wav2vec2", conv_feature_layers="{code}"),
        "its model is 'wav2vec2'",
    ),
    "older, scoring": (older(scoring="../../{code}"), "its scoring is "),
    "older, task": (older(task="online_backtranslation"), "its task is 'online_backtranslation'"),
}


@pytest.mark.parametrize("name", [*ATTACKS, *PLAIN_ATTACKS])
def test_fairseq_loads_no_such_checkpoint(states, attack, tmp_path, name):
    from fairseq import checkpoint_utils

    change, message = {**ATTACKS, **PLAIN_ATTACKS}[name]
    state = copy.deepcopy(states["team" if name in ATTACKS else "plain"])
    change(state, attack.code)
    path = tmp_path / "x.pt"
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"x\.pt: ") as caught:
        checkpoint_utils.load_model_ensemble([str(path)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_command_refuses(states, attack, shell, said, corpus, team, plain, tmp_path):
    """The same checkpoints by way of the commands; fairseq-validate builds task and criterion of them."""
    path, control = tmp_path / "x.pt", tmp_path / "control.pt"
    state = copy.deepcopy(states["team"])
    ATTACKS["wav2vec2"][0](state, attack.code)
    torch.save(state, path)
    state = copy.deepcopy(states["plain"])
    PLAIN_ATTACKS["adaptive softmax"][0](state, attack.code)
    torch.save(state, control)
    decode = (
        "decode",
        corpus.binary,
        "--cpu",
        "--user-dir",
        "translation",
        "--out",
        tmp_path / "y",
    )
    for words in (
        (*decode, "--path", path),
        (*decode, "--path", team / "checkpoint_last.pt", "--control", f"other={control}"),
        ("export", path, corpus.binary, "--out", tmp_path / "export"),
    ):
        status, _, error = said(*words)
        assert status == 2, error
        assert len(error.splitlines()) == 1, error
    data, by_us = (corpus.binary, "--cpu", "--path"), ("--user-dir", "translation")
    for words in (
        ("fairseq-generate", *data, path, *shell.PLUGIN),
        ("fairseq-generate", *data, control, *by_us, "--task", "translation"),
        ("fairseq-interactive", *data, path, *shell.PLUGIN),
        ("fairseq-validate", *data, path, *shell.PLUGIN, "--batch-size", "4"),
    ):
        log = shell(*words, fails=True).log
        assert "is '" in log or 'is "__import__' in log, log
    state = copy.deepcopy(states["team"])
    ATTACKS["a criterion"][0](state, attack.code)
    torch.save(state, path)
    words = ("fairseq-validate", *data, path, *shell.PLUGIN, "--batch-size", "4")
    assert "its criterion is 'ctc'" in shell(*words, fails=True).log


def test_what_a_checkpoint_names_as_its_user_dir_is_not_imported(
    states, attack, tmp_path, said, corpus
):
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "__init__.py").write_text(attack.code)
    state = copy.deepcopy(states["team"])
    state["cfg"]["common"]["user_dir"] = str(folder)
    path = tmp_path / "x.pt"
    torch.save(state, path)
    out = tmp_path / "y.json"
    words = ("--cpu", "--user-dir", "translation", "--max-len-b", "3", "--beam", "1")
    status, _, error = said("decode", corpus.binary, "--path", path, "--out", out, *words)
    assert status == 0, error


def test_a_pickle_that_calls_is_refused(tmp_path, attack, said):
    class Evil:
        def __reduce__(self):
            return eval, (attack.code,)

    path = tmp_path / "x.pt"
    torch.save({"model": Evil()}, path)
    status, _, error = said("inspect", path)
    assert status == 2
    assert "x.pt: not a checkpoint that can be loaded, or damaged" in error
    assert "eval" in error
    assert len(error.splitlines()) == 1


def test_options_that_the_user_sets_anew_do_not_matter(states):
    state = copy.deepcopy(states["plain"])
    vars(state["cfg"]["model"])["encoder_embed_path"] = "embeddings.txt"
    with pytest.raises(ValueError, match="--model-overrides"):
        check_configuration(state, "x.pt")
    check_configuration(state, "x.pt", {"encoder_embed_path": None})
    assert "transformer_iwslt_de_en" in architectures()


def edited(change):
    def edit(state):
        change(state)
        return state

    return edit


DAMAGED = {
    "a list": (lambda state: [1], "not a checkpoint of fairseq: it holds a list"),
    "nothing": (lambda state: {}, "there are no parameters under 'model'"),
    "a tensor": (lambda state: torch.zeros(1), "not a checkpoint of fairseq: it holds a Tensor"),
    "a number for a tensor": (
        edited(lambda state: state["model"].update(x=3)),
        "'x' under 'model' is a int, not a named tensor",
    ),
    "a number for a name": (
        edited(lambda state: state["model"].update({3: torch.zeros(1)})),
        "3 under 'model' is a Tensor, not a named tensor",
    ),
    "no configuration": (
        edited(lambda state: state.update(cfg=None)),
        "there is no configuration under 'cfg' or 'args'",
    ),
    "a configuration of text": (edited(lambda state: state.update(cfg="x")), "'cfg' is a str"),
    "a history of text": (
        edited(lambda state: state.update(optimizer_history=["x"])),
        "'optimizer_history' holds what is no dict",
    ),
    "two milliards of experts": (
        edited(lambda state: state["cfg"]["model"].update(num_experts=2_000_000_000)),
        "its option num_experts is 2000000000, but its",
    ),
    "a width of milliards": (
        edited(lambda state: state["cfg"]["model"].update(encoder_embed_dim=10**9)),
        "its option encoder_embed_dim is 1000000000, but its",
    ),
    "no experts": (
        edited(lambda state: state["cfg"]["model"].update(num_experts=0)),
        "a collaboration of 0 experts: the checkpoint is damaged",
    ),
    "an expert that is not there": (
        edited(
            lambda state: state["cfg"]["model"].update(num_experts=3, expert_decoder_layers=None)
        ),
        "there are no parameters of expert-2 in this checkpoint",
    ),
    "a delegator that is not there": (
        edited(
            lambda state: state.update(
                model={k: v for k, v in state["model"].items() if not k.startswith("delegator")}
            )
        ),
        "there are no parameters of delegator",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_checkpoints_of_other_shapes(states, said, tmp_path, name):
    change, message = DAMAGED[name]
    path = tmp_path / "x.pt"
    torch.save(change(copy.deepcopy(states["team"])), path)
    status, _, error = said("inspect", path)
    assert (status, message in error) == (2, True), error
    assert len(error.splitlines()) == 1


def test_a_flipped_bit_is_said_by_every_command(states, said, corpus, team, plain, tmp_path):
    path = tmp_path / "flipped.pt"
    content = bytearray((team / "checkpoint_last.pt").read_bytes())
    weight = states["team"]["model"]["experts.0.encoder.layers.0.fc1.weight"].numpy().tobytes()
    content[content.index(weight) + random.Random(0).randrange(len(weight))] ^= 16
    path.write_bytes(content)
    out, decode = tmp_path / "out", ("decode", corpus.binary, "--cpu", "--user-dir", "translation")
    for words in (
        ("inspect", path),
        ("take", path, "expert-0", "--out", out),
        ("average", team / "checkpoint_last.pt", path, "--out", out),
        (*decode, "--path", path, "--out", out),
        (*decode, "--path", team / "checkpoint_last.pt", "--control", f"x={path}", "--out", out),
        ("export", path, corpus.binary, "--out", out),
    ):
        status, _, error = said(*words)
        assert status == 2, words
        assert f"{path} is damaged: " in error
        assert "does not match its checksum" in error
        assert len(error.splitlines()) == 1
        assert not out.exists()


@pytest.mark.parametrize(
    "content", [b"", b"junk", b"[1, 2]", b"PK\x03\x04junk", b"\x80\x02}q\x00.", b"\x80"]
)
def test_files_that_are_no_checkpoints(said, tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    for words in (("inspect", path), ("average", path, "--out", tmp_path / "y")):
        status, _, error = said(*words)
        assert status == 2
        assert "x.pt" in error
        assert "weights_only" not in error  # torch's advice to load it all the same
        assert len(error.splitlines()) == 1


def test_a_pipe_is_not_waited_for(said, tmp_path):
    os.mkfifo(tmp_path / "x.pt")
    assert "x.pt: not a file" in said("inspect", tmp_path / "x.pt")[2]


def test_a_checkpoint_of_another_direction():
    loaded = Loaded("team.pt", "de-en")
    check_direction(loaded, "de-en")
    check_direction(
        Loaded("team.pt", None), "en-de"
    )  # trained without --source-lang: it does not say
    with pytest.raises(ValueError, match=r"team.pt was trained for de-en, and this is en-de: give"):
        check_direction(loaded, "en-de")
