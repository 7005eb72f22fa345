"""The coe-translation command, and the text and scores behind it."""

from pathlib import Path

import pytest
import torch

from translation.evaluation.scoring import compare, score
from translation.plugin.checkpoints import average


def test_user_dir(said):
    assert Path(said("user-dir")[1].strip(), "plugin", "task.py").is_file()


def test_check(said, tmp_path):
    good, other = tmp_path / "good", tmp_path / "other"
    good.write_text("ein Haus\n\nzwei Häuser und\u2028mehr\n", encoding="utf-8")
    other.write_text("a house\r\n\r\ntwo houses and more", encoding="utf-8")
    assert said("check", good, other)[:2] == (
        0,
        f"3 lines\n{good}: 1 empty, longest 4 words\n{other}: 1 empty, longest 4 words\n",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\n", "line counts differ: {good} has 2 lines, {bad} has 1"),
        (b"", "{bad}: the file is empty"),
        (b"one\nH\xe4user\n", "{bad}:2: not UTF-8 (byte 0xe4 at position 2 of the line)"),
        (b"\n\n", "{bad}: all 2 lines are empty"),
        (None, "{bad}: no such file"),
    ],
)
def test_texts_that_do_not_serve(said, tmp_path, content, message):
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("eins\nzwei\n")
    if content is not None:
        bad.write_bytes(content)
    status, _, error = said("check", good, bad)
    assert status == 2
    assert message.format(good=good, bad=bad) in error


def test_score_of_what_fairseq_printed(said, tmp_path):
    reference, other = tmp_path / "reference", tmp_path / "other"
    reference.write_text("the cat sat on the mat\n\na dog ran over the hill\n")
    other.write_text("a cat was on a mat\n\none dog ran across the hill\n")
    printed = tmp_path / "printed"
    printed.write_text(  # in fairseq's order, by length
        "R-2\texpert-1\t0.5\nS-2\tx\nD-2\t-0.1\ta dog ran over the hill\nD-2\t-0.2\tworse\n"
        "D-0\t-0.1\tthe cat sat on the mat\nD-1\t0.0\t\n"
    )
    status, out, _ = said("score", printed, "-r", reference)
    assert status == 0
    assert "BLEU           100.00" in out
    assert "TER              0.00" in out
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in out
    out = said("score", other, printed, "-r", reference, "-r", other, "--resamples", "50")[1]
    assert "nrefs:2" in out
    assert out.count("  p ") == 4


def test_scores_need_all_sentences(said, tmp_path):
    printed = tmp_path / "printed"
    printed.write_text("D-2\t-0.1\ta dog\nD-0\t-0.1\ta cat\n")
    status, _, error = said("score", printed, "-r", printed)
    assert status == 2
    assert "1 of 3 sentences have no D- line, the first is 1" in error


def test_tokenised_bleu_is_fairseqs():
    from fairseq.data import Dictionary
    from fairseq.scoring.bleu import BleuConfig, Scorer

    systems = ["the cat sat on a mat today", "a dog ran over the long hill"]
    references = ["the cat sat on the mat today", "the dog ran over the long hill"]
    words = Dictionary()
    config = BleuConfig(pad=words.pad(), eos=words.eos(), unk=words.unk())
    fairseq = Scorer(config)
    for system, reference in zip(systems, references, strict=True):
        fairseq.add(words.encode_line(reference).int(), words.encode_line(system).int())
    ours = score(systems, [references], ["tokenised BLEU"])[0].value
    assert ours == pytest.approx(fairseq.score(), abs=0.01)


def test_better_systems_are_told_from_equal_ones():
    reference = [f"sentence number {i} has its own words {i * 7}" for i in range(60)]
    worse = [line.replace("words", "text") for line in reference]
    compared = compare({"base": worse, "good": reference}, [reference], ["BLEU"], num_resamples=100)
    assert compared["base"][0].p_value is None
    assert compared["good"][0].p_value < 0.02
    with pytest.raises(ValueError, match="two systems or more"):
        compare({"base": worse}, [reference])
    with pytest.raises(ValueError, match="unknown metric 'bleu'"):
        score(worse, [reference], ["bleu"])
    with pytest.raises(ValueError, match="the system has 60 translations, reference 0 has 1"):
        score(worse, [["one"]])


def test_inspect_and_take(said, team, plain, tmp_path):
    status, out, _ = said("inspect", team / "checkpoint_last.pt")
    assert status == 0
    assert out.startswith("coe_transformer_tiny, 2 experts\nupdates 60\n")
    assert len([line for line in out.splitlines() if line.startswith("expert-")]) == 2
    assert said("take", team / "checkpoint_last.pt", "expert-1", "--out", tmp_path / "x")[0] == 0
    assert (tmp_path / "x").is_file()
    status, _, error = said(
        "take", team / "checkpoint_last.pt", "expert-1", "--out", tmp_path / "x"
    )
    assert (status, "is not overwritten" in error) == (2, True)
    assert "its architecture is 'transformer_tiny'" in said("inspect", plain)[2]


def test_vocabulary_and_encode(said, corpus, tmp_path):
    texts = (corpus.text / "train.de", corpus.text / "train.en")
    for name in ("one.model", "other.model"):
        status, out, _ = said("vocabulary", *texts, "--size", "60", "--out", tmp_path / name)
        assert (status, out) == (0, f"{tmp_path / name}: 60 pieces\n")
    model = tmp_path / "one.model"
    assert model.read_bytes() == (tmp_path / "other.model").read_bytes()
    status, _, error = said("vocabulary", *texts, "--size", "90000", "--out", tmp_path / "large")
    assert (status, "no vocabulary of 90000 pieces from 600 lines" in error) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.model", "other.model"]

    test = corpus.text / "test.de"  # its line 6 is empty
    assert said("encode", test, "--model", model, "--out", tmp_path / "pieces")[0] == 0
    encoded = (tmp_path / "pieces" / "test.de").read_text(encoding="utf-8").splitlines()
    joined = [line.replace(" ", "").replace("\u2581", " ").strip() for line in encoded]
    assert joined == test.read_text(encoding="utf-8").splitlines()
    assert encoded[5] == ""
    status, _, error = said("encode", test, "--model", model, "--out", corpus.text)
    assert (status, "would be overwritten" in error) == (2, True)
    status, _, error = said("encode", test, "--model", test, "--out", tmp_path / "pieces")
    assert (status, "not a SentencePiece model" in error) == (2, True)
    bad = tmp_path / "bad"
    bad.write_bytes(b"gut\n\xff\n")
    for words in (
        ("vocabulary", bad, "--size", "9", "--out", tmp_path / "x"),
        ("encode", bad, "--model", model, "--out", tmp_path / "pieces"),
    ):
        status, _, error = said(*words)
        assert (status, f"{bad}:2: not UTF-8 (byte 0xff" in error) == (2, True)


def test_average(said, team, plain, generate, tmp_path):
    """The mean of three checkpoints, two of them after as many updates: those count once."""
    last = torch.load(team / "checkpoint_last.pt", weights_only=True)
    early = {**last, "model": {key: value + 1 for key, value in last["model"].items()}}
    early["optimizer_history"] = [{**last["optimizer_history"][-1], "num_updates": 30}]
    torch.save(early, tmp_path / "early.pt")
    out = tmp_path / "mean.pt"
    paths = (team / "checkpoint_last.pt", tmp_path / "early.pt", team / "checkpoint_last.pt")
    status, shown, _ = said("average", *paths, "--out", out)
    assert (status, shown) == (0, f"{out}: mean of 2 checkpoints, after 30, 60 updates\n")
    mean = torch.load(out, weights_only=True)
    assert "last_optimizer_state" not in mean
    assert mean["model"].keys() == last["model"].keys()
    for key, value in last["model"].items():
        if value.is_floating_point() and value.numel() > 1:
            torch.testing.assert_close(mean["model"][key], value + 0.5)
    tied = [
        f"experts.0.{name}.weight" for name in ("encoder.embed_tokens", "decoder.output_projection")
    ]
    assert len({mean["model"][name].data_ptr() for name in tied}) == 1
    assert len(generate(path=out).lines("H")) == 24
    status, _, error = said("average", team / "checkpoint_last.pt", plain, "--out", tmp_path / "x")
    assert (status, "is of another network than the first" in error) == (2, True)
    assert "no such file" in said("average", tmp_path / "no.pt", "--out", tmp_path / "x")[2]
    with pytest.raises(ValueError, match="no checkpoints to average"):
        average([])


def test_checkpoints_of_two_trainings_have_no_mean(said, team, tmp_path):
    """Of one shape, so that nothing but what they say of themselves tells them apart."""
    from copy import deepcopy

    other = tmp_path / "other.pt"
    last = torch.load(team / "checkpoint_last.pt", weights_only=True)

    def averaged(change):
        state = deepcopy(last)
        change(state)
        torch.save(state, other)
        return said("average", path, other, "--out", tmp_path / "mean.pt")

    last["cfg"]["task"]["target_lang"] = "en"
    torch.save(last, path := tmp_path / "path.pt")

    def later(state, **more):
        state["optimizer_history"][-1]["num_updates"] = 90
        for name, value in more.items():
            section = {"seed": "common", "target_lang": "task", "save_dir": "checkpoint"}[name]
            state["cfg"][section][name] = value

    for more, message in (
        ({"seed": 2}, f"{path} was trained with seed 1, {other} with 2: the mean of two trainings"),
        ({"target_lang": "fr"}, f"{path} was trained with target_lang en, {other} with fr"),
    ):
        status, _, error = averaged(lambda state, more=more: later(state, **more))
        assert (status, message in error, error.count("\n")) == (2, True, 1), error
    status, _, error = averaged(lambda state: state["model"]["selection.linear.bias"].add_(1))
    assert (status, "are both after 60 updates and differ" in error) == (2, True), error
    assert not (tmp_path / "mean.pt").exists()
    status, _, error = averaged(lambda state: later(state, save_dir="elsewhere"))
    assert (status, "warning: the checkpoints were written to 2 folders" in error) == (0, True)


def test_a_command_that_is_written_wrongly(said):
    status, _, error = said("inspect", "x.pt", "--beam", "5")
    assert status == 2
    assert error.startswith("coe-translation inspect: unrecognized arguments: --beam 5")
    assert error.count("\n") == 1
