"""decode, calibrate and curve: one translation by every network, and all that is computed from it."""

import csv
import json
import shutil

import pytest
import torch
from sacrebleu import corpus_bleu, corpus_chrf

from coe_core import AimNotReachableError
from coe_core.support.aims import parse_aim
from translation.commands.cli import main
from translation.evaluation.calibrate import KINDS, calibrate, load_points
from translation.evaluation.systems import routed_systems, single_systems
from translation.evaluation.translations import OfNetwork, Selection, Translations


@pytest.fixture(scope="session")
def parts(team, tmp_path_factory):
    """Two networks of the team as controls: a cascade whose translations are known."""
    folder = tmp_path_factory.mktemp("parts")
    for name in ("delegator", "expert-0"):
        words = ("take", team / "checkpoint_last.pt", name, "--out", folder / f"{name}.pt")
        assert main([str(word) for word in words]) == 0
    return folder


@pytest.fixture(scope="session")
def decode(corpus, team, parts):
    """The words of the command, and a file to write to."""

    def words(out, *more):
        return (
            *("decode", corpus.binary, "--path", team / "checkpoint_last.pt", "--cpu"),
            *("--reference", corpus.text / "test.en", "--beam", "3", "--num-workers", "0"),
            *("--user-dir", "translation", "--max-len-b", "20", "--out", out),
            *more,
        )

    return words


@pytest.fixture(scope="session")
def file(decode, parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("decoded") / "test.json"
    controls = (
        *("--control", f"expert-alone={parts / 'expert-0.pt'}"),
        *("--control", f"delegator-alone={parts / 'delegator.pt'}"),
    )
    assert main([str(word) for word in decode(out, *controls, "--batch-size", "7")]) == 0
    return out


@pytest.fixture(scope="session")
def translations(file):
    return Translations.load(file)


@pytest.fixture(scope="session")
def printed(generate):
    def call(*options):
        return generate("--max-len-b", "20", *options)

    return call


def texts(done):
    return [done.table("D")[number][1] for number in range(24)]


def test_every_network_translates_as_in_generation(translations, printed, corpus):
    assert translations.reference == (corpus.text / "test.en").read_text().splitlines()
    assert translations.source == (corpus.text / "test.de").read_text().splitlines()
    assert translations.networks["delegator"].text == texts(printed("--threshold", "0"))
    assert translations.networks["ensemble"].text == texts(printed("--router", "ensemble"))
    learned = printed()
    assert routed_systems(translations)["CoE"].at(float("inf")).text == texts(learned)
    for number, (network, confidence) in learned.table("R").items():
        if number == 5:
            assert (network, confidence) == ("empty", "1.0000")
        else:
            assert (
                network == f"expert-{torch.tensor(translations.selection.logits[number]).argmax()}"
            )
            assert confidence == "nan"  # the delegator did not translate
    for number, (_, confidence) in printed("--threshold", "1").table("R").items():
        assert translations.networks["delegator"].confidence[number] == pytest.approx(
            float(confidence), abs=2e-4
        )
    assert translations.networks["expert-alone"].text == translations.networks["expert-0"].text
    assert translations.networks["expert-alone"].macs == translations.networks["expert-0"].macs
    assert translations.networks["delegator"].text[5] == ""
    assert translations.networks["delegator"].macs[5] == 0


def test_a_system_at_a_threshold_is_what_generation_does(translations, printed):
    ours = routed_systems(translations)["CoE"].at(0.14)
    theirs = printed("--threshold", "0.14")
    assert ours.text == texts(theirs)
    early = sum(row[0] in ("delegator", "empty") for row in theirs.table("R").values())
    assert ours.exit_rate == pytest.approx(early / 24)


def test_without_exits_the_delegator_only_selects(translations):
    systems = routed_systems(translations)
    by_expert = systems["CoE"].second.macs
    whole = systems["CoE"].at(float("inf"))
    selection = sum(translations.selection.macs) / 24
    assert 0 < selection < sum(translations.networks["delegator"].macs) / 24 / 3
    assert translations.selection.macs[5] == 0
    assert whole.macs == pytest.approx(sum(by_expert) / 24 + selection)
    twice = systems["CoE"].at(1.0).macs  # none exits either, but all are translated twice
    assert whole.macs < twice
    alone = sum(translations.networks["expert-alone"].macs) / 24
    assert systems["cascade"].at(float("inf")).macs == pytest.approx(alone)


def test_what_a_sentence_costs_does_not_depend_on_its_batch(translations, decode, tmp_path, said):
    status, out, _ = said(*decode(tmp_path / "alone.json", "--batch-size", "1"))
    assert status == 0
    assert "MMACs" in out
    alone = Translations.load(tmp_path / "alone.json")
    for name, one in alone.networks.items():
        assert one.macs == translations.networks[name].macs, name
        assert one.text == translations.networks[name].text, name


def test_curves_are_sacrebleus_scores_at_every_threshold(translations):
    systems = routed_systems(translations)
    assert set(systems) == {"CoE", "random", "oracle", "cascade"}
    for metric, score in (("BLEU", corpus_bleu), ("chrF", corpus_chrf)):
        for name, system in systems.items():
            curve = system.stages.curve(metric, "macs")
            for place in range(0, len(curve.threshold), 5):
                mixture = system.at(float(curve.threshold[place]))
                wanted = score(mixture.text, [translations.reference]).score
                assert float(curve.quality[place]) == pytest.approx(wanted, abs=1e-9), (
                    name,
                    metric,
                )
                assert float(curve.cost[place]) == pytest.approx(mixture.macs)
                assert float(curve.exit_rate[place]) == pytest.approx(mixture.exit_rate)


def test_calibrate_stores_thresholds_that_generation_reads(
    said, file, translations, printed, tmp_path
):
    out = tmp_path / "thresholds.json"
    aims = ("best", "bleu_drop=0.5", "macs=60%", "latency=90%", "chrf_drop=1")
    status, shown, _ = said("calibrate", file, *aims, "--system", "coe", "--out", out)
    assert status == 0
    assert shown.count("MMACs") == 4
    assert shown.count(" ms") == 1
    assert shown.count("CoE is the only system that reaches it") == 5
    points = load_points(out).named()
    assert list(points) == list(aims)
    whole = routed_systems(translations)["CoE"].at(float("inf"))
    reached = routed_systems(translations)["CoE"].at(points["macs=60%"].threshold)
    assert reached.macs <= 0.6 * whole.macs
    assert reached.macs == pytest.approx(points["macs=60%"].cost)
    loss = corpus_bleu(whole.text, [translations.reference]).score - points["bleu_drop=0.5"].quality
    assert loss <= 0.5 + 1e-9
    stored = json.loads(out.read_text())
    assert stored["provenance"]["beam"] == 3
    assert stored["points"]["CoE"][0]["num_samples"] == 24
    assert texts(printed("--threshold", f"{out}:macs=60%")) == reached.text
    assert "it has: best, bleu_drop" in printed_error(printed, out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--confidence", "log_probability"), "with confidence probability, not log_probability"),
        (("--beam", "2"), "with beam 3, not 2"),
        (("--lenpen", "0.5"), "with lenpen 1.0, not 0.5"),
        (("--router", "always-1"), "with router learned, not always"),
        (("--source-lang", "en", "--target-lang", "de"), "with direction de-en, not en-de"),
    ],
)
def test_thresholds_are_refused_with_other_settings(
    said, file, generate, tmp_path, options, message
):
    out = tmp_path / "thresholds.json"
    assert said("calibrate", file, "best", "--out", out)[0] == 0
    log = generate("--threshold", f"{out}:best", *options, fails=True).log
    assert message in log
    assert "decode and calibrate with these settings" in log


def test_thresholds_are_refused_with_another_checkpoint(
    said, file, generate, team, shell, corpus, tmp_path
):
    out, other = tmp_path / "thresholds.json", tmp_path / "other.pt"
    assert said("calibrate", file, "best", "--out", out)[0] == 0
    assert said("average", team / "checkpoint_last.pt", "--out", other)[0] == 0
    log = generate("--threshold", f"{out}:best", path=other, fails=True).log
    assert "was fitted with checkpoint " in log
    words = (corpus.binary, *shell.PLUGIN, "--cpu", "--beam", "2", "--threshold", f"{out}:best")
    log = shell(
        "fairseq-interactive", *words, "--path", team / "checkpoint_last.pt", fails=True
    ).log
    assert "with beam 3, not 2" in log


def test_a_cascade_has_thresholds_of_its_own(said, file, generate, team, parts, tmp_path):
    out = tmp_path / "thresholds.json"
    assert said("calibrate", file, "macs=90%", "--out", out)[0] == 0
    threshold = ("--router", "cascade", "--threshold", f"{out}:macs=90%")
    both = f"{team / 'checkpoint_last.pt'}:{parts / 'expert-0.pt'}"
    assert len(generate(*threshold, path=both).table("H")) == 24
    both = f"{team / 'checkpoint_last.pt'}:{parts / 'delegator.pt'}"
    assert "was fitted with expert-alone " in generate(*threshold, path=both, fails=True).log


def printed_error(printed, out):
    return printed_fails(printed, "--threshold", f"{out}:macs=1%")


def printed_fails(printed, *options):
    with pytest.raises(ValueError, match="has no threshold named") as caught:
        printed(*options)
    return str(caught.value)


def test_curve_writes_the_table_and_the_pictures(said, file, translations, tmp_path):
    points, out = tmp_path / "points.json", tmp_path / "curve"
    assert said("calibrate", file, "macs=60%", "--out", points)[0] == 0
    assert "is given twice, as if it were two seeds" in said("curve", file, file, "--out", out)[2]
    second = shutil.copy(file, out.with_name("second.json"))
    status, shown, _ = said("curve", file, second, "--points", points, "--out", out)
    assert status == 0
    assert "nrefs:1|case:mixed" in shown
    assert "load of the experts" in shown
    with open(out / "table.csv", encoding="utf-8", newline="") as opened:
        table = {row["system"]: row for row in csv.DictReader(opened)}
    assert set(table) >= {
        *("delegator", "expert-0", "expert-1", "mean of one expert", "ensemble", "expert-alone"),
        *("CoE, no exits", "CoE, macs=60%", "cascade, no exits", "cascade, macs=60%"),
        *("random, no exits", "oracle, no exits"),
    }
    for name, system in single_systems(translations).items():
        assert float(table[name]["BLEU"]) == pytest.approx(
            corpus_bleu(system.text, [translations.reference]).score, abs=1e-3
        )
        assert float(table[name]["MMACs"]) == pytest.approx(system.macs / 1e6, abs=1e-3)
    assert {row["seeds"] for row in table.values()} == {"2"}
    assert float(table["CoE, no exits"]["BLEU spread"]) == 0
    for number in range(2):
        rows = (out / f"trade_off-{number}.csv").read_text().splitlines()
        assert rows[1].startswith("CoE,inf,0,")
        assert (out / f"trade_off-{number}.png").read_bytes().startswith(b"\x89PNG")
    text = (out / "translations-0" / "CoE_macs=60%").read_text().splitlines()
    assert len(text) == 24


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


def test_aims():
    assert parse_aim("macs=2G", KINDS)[:2] == ("macs", 2e9)
    assert parse_aim("bleu_drop=0", KINDS)[:2] == ("bleu_drop", 0)
    for wrong in ("fast", "best=1", "macs", "macs=0", "macs=-3", "latency=x", "bleu_drop=nan"):
        with pytest.raises(ValueError, match="aim"):
            parse_aim(wrong, KINDS)


def test_a_budget_below_the_delegator(translations, said, file, tmp_path):
    with pytest.raises(AimNotReachableError, match="is below that of every system; the cheapest"):
        calibrate(translations, ["macs=1"], "x")
    status, _, error = said("calibrate", file, "macs=1", "--out", tmp_path / "x")
    assert (status, "the cheapest that exists is single:delegator-alone at" in error) == (2, True)
    assert not (tmp_path / "x").exists()
    status, _, error = said("calibrate", file, "best", "macs=1", "--out", tmp_path / "x")
    assert (status, "left out: macs=1: a mean cost of 1 is below" in error) == (0, True)
    assert list(load_points(tmp_path / "x").named()) == ["best"]


def test_files_that_are_not_what_they_should_be(said, file, translations, tmp_path):
    junk = tmp_path / "junk.json"
    junk.write_text("{}")
    for words, message in (
        (("calibrate", junk, "best", "--out", tmp_path / "x"), "not what coe-translation decode"),
        (("calibrate", tmp_path / "no", "best", "--out", tmp_path / "x"), "no: no such file"),
        (
            ("curve", file, "--points", junk, "--out", tmp_path / "x"),
            "no operating points of ours: it has no points",
        ),
        (("curve", file, *("--points", junk) * 2, "--out", tmp_path / "x"), "no operating points"),
    ):
        status, _, error = said(*words)
        assert (status, message in error) == (2, True), error
    other = json.loads(file.read_text())
    other["reference"][0] = "another"
    junk.write_text(json.dumps(other))
    assert "of different test sets" in said("curve", file, junk, "--out", tmp_path / "x")[2]
    other["networks"]["delegator"]["text"].pop()
    junk.write_text(json.dumps(other))
    assert (
        "23 text of delegator for 24 sentences" in said("curve", junk, "--out", tmp_path / "x")[2]
    )


def test_translations_need_every_expert():
    network = OfNetwork(["a"], [0.5], [1.0], [1.0])
    two = Selection([[0.0, 1.0]], [1.0], [1.0])
    translations = Translations({}, ["a"], ["a"], two, {"delegator": network, "expert-0": network})
    with pytest.raises(ValueError, match="file: no translations by expert-1"):
        translations.check("file")
    broken = OfNetwork(["a"], [0.5], [float("nan")], [1.0])
    translations = Translations(
        {},
        ["a"],
        ["a"],
        Selection([[0.0]], [1.0], [1.0]),
        {"delegator": network, "expert-0": broken},
    )
    with pytest.raises(ValueError, match="costs of expert-0 that are not finite"):
        translations.check("file")
