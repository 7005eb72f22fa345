"""What decode refuses: options, references, data and sentences that do not serve."""

import shutil

import pytest
import torch

from translation.evaluation.translations import Translations


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--control", "expert-1={plain}"),
            "control 'expert-1' is a name of the team's own networks",
        ),
        (("--control", "other={team}"), "is a collaboration, not one network"),
        (("--control", "other"), "--control must be NAME=CHECKPOINT, got 'other'"),
        (("--control", "other=none.pt"), "none.pt: no such file"),
        (("--path", "{plain}"), "not a collaboration; give a checkpoint of coe_transformer"),
        (("--reference", "{short}"), "the reference has 1 lines, test 24 sentences"),
        (("--max-len-a", "1.5"), "go by the longest source of a batch"),
    ],
)
def test_what_cannot_be_decoded(said, decode, team, parts, tmp_path, more, message):
    (tmp_path / "short").write_text("one\n")
    names = {
        "plain": parts / "expert-0.pt",
        "team": team / "checkpoint_last.pt",
        "short": tmp_path / "short",
    }
    more = [word.format(**names) for word in more]
    status, _, error = said(*decode(tmp_path / "out.json", *more))
    assert status == 2
    assert message in error
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda lines: lines[1:] + lines[:1], "it has the same lines in another order"),
        (
            lambda lines: [f"wholly other words {len(line)}" for line in lines],
            "it is of another set",
        ),
        (lambda lines: [*lines[:7], "something else", *lines[8:]], "it is of another set"),
        (lambda lines: ["▁" + line.replace(" ", " ▁") for line in lines], "cut into pieces"),
    ],
)
def test_a_reference_of_other_sentences(said, decode, corpus, tmp_path, change, cause):
    lines = (corpus.text / "test.en").read_text().splitlines()
    other = tmp_path / "other"
    other.write_text("".join(f"{line}\n" for line in change(lines)))
    status, _, error = said(*decode(tmp_path / "out.json", "--reference", other))
    assert status == 2
    assert "the reference does not match the target of test in " in error
    assert cause in error
    assert "the first is line " in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out.json").exists()


def test_the_reference_of_another_set_and_the_source(said, decode, corpus, tmp_path):
    words = decode(tmp_path / "out.json", "--gen-subset", "valid")
    assert "it is of another set, or of other sentences" in said(*words)[2]
    words = decode(tmp_path / "out.json", "--reference", corpus.text / "test.de")
    assert "it is the source's text; give the target's" in said(*words)[2]


def test_pieces_that_were_not_put_together(said, decode, corpus, shell, tmp_path):
    """As when --remove-bpe was forgotten."""
    for name in ("test.de", "test.en"):
        lines = (corpus.text / name).read_text().splitlines()
        pieces = ["▁" + line.replace(" ", " ▁") if line else "" for line in lines]
        (tmp_path / name).write_text("".join(f"{line}\n" for line in pieces))
    dictionary = tmp_path / "dict.de.txt"
    words = (corpus.binary / "dict.de.txt").read_text().splitlines()
    dictionary.write_text("".join(f"▁{word}\n" for word in words))
    shell(
        *(
            "fairseq-preprocess",
            "-s",
            "de",
            "-t",
            "en",
            "--joined-dictionary",
            "--srcdict",
            dictionary,
        ),
        *("--testpref", tmp_path / "test", "--destdir", tmp_path / "bin"),
    )
    given = list(decode(tmp_path / "out.json"))
    given[1] = tmp_path / "bin"
    given[3] = tmp_path / "team.pt"
    state = torch.load(decode("")[3], weights_only=True)
    state[
        "task_state"
    ] = {}  # the same words with a mark: other dictionaries than it was trained with
    torch.save(state, tmp_path / "team.pt")
    error = said(*given)[2]
    assert "in 24 of 24 lines: the data are pieces, and they are not put together" in error
    assert "give --remove-bpe sentencepiece; the first is line 1, " in error
    assert said(*given, "--remove-bpe", "sentencepiece")[0] == 0
    both = ("--remove-bpe", "sentencepiece", "--bpe", "sentencepiece", "--sentencepiece-model", "x")
    assert "would put pieces together twice" in said(*given, *both)[2]


def test_a_reference_that_is_spelled_otherwise_serves(said, decode, corpus, tmp_path):
    lines = (corpus.text / "test.en").read_text().splitlines()
    spelled = [line.upper().replace(" AND ", ", and ") + "." for line in lines]
    spelled[3] += " now"
    other = tmp_path / "other"
    other.write_text("".join(f"{line}\n" for line in spelled))
    status, out, _ = said(*decode(tmp_path / "out.json", "--reference", other))
    assert status == 0
    assert "1 of 24 lines of the reference differ a little from the target, the first is 4" in out
    assert Translations.load(tmp_path / "out.json").reference == spelled


def test_data_without_a_target(said, decode, corpus, shell, generate, team, tmp_path):
    shell(
        *("fairseq-preprocess", "-s", "de", "-t", "en", "--only-source"),
        *("--srcdict", corpus.binary / "dict.de.txt", "--testpref", corpus.text / "test"),
        *("--destdir", tmp_path / "bin"),
    )
    shutil.copy(corpus.binary / "dict.en.txt", tmp_path / "bin")
    words = list(decode(tmp_path / "out.json"))
    words[1] = tmp_path / "bin"
    assert said(*words)[0] == 0
    translations = Translations.load(tmp_path / "out.json")
    assert translations.reference == (corpus.text / "test.en").read_text().splitlines()
    place = words.index("--reference")
    error = said(*words[:place], *words[place + 2 :])[2]
    assert "test has no target (--only-source); give its text with --reference" in error
    plain = ("--path", team / "checkpoint_last.pt", "--cpu", "--beam", "3", "--max-len-b", "20")
    done = shell("fairseq-generate", tmp_path / "bin", *shell.PLUGIN, *plain, "--threshold", "0")
    assert [row[1] for _, row in sorted(done.table("D").items())] == translations.networks[
        "delegator"
    ].text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-tokens", "4"), "--max-tokens 4 is less than the longest sentence has, "),
        (("--max-tokens", "0"), "--max-tokens must be at least 1, got 0"),
        (("--batch-size", "-3"), "--batch-size must be at least 1, got -3"),
        (("--beam", "0"), "--beam must be at least 1, got 0"),
        (
            ("--threshold", "0.5"),
            "--threshold 0.5 does not go with decode: every network translates",
        ),
        (("--router", "random"), "--router random does not go with decode"),
        (("--nbest", "2"), "--nbest 2 does not go with decode: the best translation"),
        (("--prefix-size", "1"), "--prefix-size 1 does not go with decode"),
        (
            ("--results-path", "x"),
            "--results-path x does not go with decode: the translations go to",
        ),
        (("--save-dir", "x"), "--save-dir has no effect in decode; leave it out"),
        (("--bf16",), "--bf16 has no effect in decode"),
        (("--eval-bleu",), "--eval-bleu has no effect in decode"),
        (("--sampling-topk", "5"), "--sampling-topk has no effect without --sampling"),
        (("--sampling", "--sampling-topp", "2"), "--sampling-topp must be above 0 and at most 1"),
        (("--temperature", "0"), "--temperature must be above 0, got 0.0"),
        (("--no-repeat-ngram-size", "-4"), "--no-repeat-ngram-size must be above 0, got -4"),
        (("--bpe", "sentencepiece"), "--bpe sentencepiece needs --sentencepiece-model"),
        (("--remove-bpe", "x"), "--remove-bpe x: Unknown post_process option: x"),
        (("--dataset-impl", "raw"), "of --dataset-impl raw (to be left out); there are: "),
        (("--source-lang", "fr"), "holds de-en, not fr-"),
        (("--source-lang", "en"), "holds de-en, not en-"),
        (("--user-dir", "nowhere"), "(--user-dir)"),
        (("--scoring", "sacrebleu"), "--scoring sacrebleu does not go with decode"),
        (("--min-len", "30"), "fairseq's search: min_len cannot be larger than max_len"),
        (("--gen-subset", "dev"), "there is no set 'dev' in "),
        (("--beams", "3"), "unrecognized arguments: --beams 3 (options of fairseq-generate)"),
        (("--beam", "three"), "argument --beam: invalid int value: 'three'"),
        (("--reference", "none"), "none: no such file"),
        (("--user-dir", "tests/translation"), "Failed to import --user-dir="),
        (("--lenpen", "nan"), "--lenpen must be a finite number, got nan"),
        (("--unkpen", "inf"), "--unkpen must be a finite number, got inf"),
        (
            ("--model-overrides", "{'x': __import__('os').getcwd()}"),
            "--model-overrides must be a dictionary of plain values, got",
        ),
    ],
)
def test_options_that_decode_does_not_take(said, decode, tmp_path, options, message):
    status, _, error = said(*decode(tmp_path / "out.json", *options))
    assert (status, message in error) == (2, True), error
    assert len(error.splitlines()) == 1, error
    assert not (tmp_path / "out.json").exists()


def test_damaged_data(said, decode, corpus, tmp_path):
    def error_with(change):
        folder = tmp_path / "bin"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(corpus.binary, folder)
        change(folder)
        words = list(decode(tmp_path / "out.json"))
        words[1] = folder
        status, _, error = said(*words)
        assert (status, len(error.splitlines())) == (2, 1), error
        return error

    index, data = "test.de-en.de.idx", "test.de-en.de.bin"
    for content in (b"", b"junk", b"MMIDIDX\x00\x00" + b"\xff" * 40):
        error = error_with(lambda folder: (folder / index).write_bytes(content))  # noqa: B023
        assert "run fairseq-preprocess again" in error
    cut = (corpus.binary / data).read_bytes()[:30]
    assert "run fairseq-preprocess again" in error_with(
        lambda folder: (folder / data).write_bytes(cut)
    )
    high = bytearray((corpus.binary / data).read_bytes())
    high[1] = 0x7F
    assert "entries; run fairseq-preprocess again" in error_with(
        lambda folder: (folder / data).write_bytes(high)
    )
    for content, message in (
        (b"a 1\na 1\n", "Duplicate word"),
        (b"a\n", "dictionary format"),
        (b"\xff\xfe 1\n", "encoding"),
    ):
        error = error_with(lambda folder: (folder / "dict.de.txt").write_bytes(content))  # noqa: B023
        assert message in error


def test_sentences_over_the_limit(said, decode, generate, tmp_path):
    """An error that counts them, or skipped and counted, as fairseq's flag says."""
    limit = ("--max-source-positions", "9")
    message = "of 24 sentences are over the length limit (9, 1024); the first is number"
    done = generate(*limit, fails=True)
    assert message in done.log
    assert "--skip-invalid-size-inputs-valid-test leaves them out" in done.log
    status, _, error = said(*decode(tmp_path / "x.json", *limit))
    assert (status, message in error) == (2, True)
    skip = (*limit, "--skip-invalid-size-inputs-valid-test")
    kept = generate(*skip)
    assert "samples have invalid sizes and will be skipped" in kept.log
    status, out, _ = said(*decode(tmp_path / "x.json", *skip))
    assert status == 0
    skipped = 24 - len(kept.table("H"))
    assert 0 < skipped < 24
    assert f"{skipped} of 24 sentences are over the length limit and are skipped" in out
    translations = Translations.load(tmp_path / "x.json")
    assert translations.provenance["skipped"] == skipped
    assert translations.networks["delegator"].text == [
        row[1] for _, row in sorted(generate(*skip, "--threshold", "0").table("D").items())
    ]
