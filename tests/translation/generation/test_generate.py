"""fairseq-generate and fairseq-interactive with routing."""

import math

import pytest

SEEN = ("--threshold", "1")  # almost none exit, but the delegator translates and has a confidence


def confidences(done):
    return {number: float(row[1]) for number, row in done.table("R").items()}


def median(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def test_ordinary_lines_and_one_route_for_each_sentence(generate):
    done = generate()
    numbers = set(range(24))
    for kind in "STHDPR":
        assert set(done.table(kind)) == numbers, kind
    routes = {row[0] for number, row in done.table("R").items() if number != 5}
    assert routes <= {"expert-0", "expert-1"}
    assert done.out.splitlines()[-1].startswith("Generate test with beam=3: BLEU4")


def test_an_empty_source_translates_to_an_empty_line_and_shifts_nothing(generate):
    done = generate()
    assert done.table("R")[5] == ["empty", "1.0000"]
    assert done.table("H")[5] == ["0.0", ""]
    assert all(row[1] for number, row in done.table("H").items() if number != 5)
    assert all(row[0] for number, row in done.table("T").items() if number != 5)


def test_threshold_decides_who_exits(generate):
    of_sentence = confidences(generate(*SEEN))
    threshold = median(value for number, value in of_sentence.items() if number != 5)
    done = generate("--threshold", threshold)
    networks = {number: row[0] for number, row in done.table("R").items()}
    early = {number for number, network in networks.items() if network == "delegator"}
    printed = 1e-4  # four digits are printed
    assert early >= {n for n, value in of_sentence.items() if value > threshold + printed} - {5}
    assert early <= {n for n, value in of_sentence.items() if value > threshold - printed}
    assert 0 < len(early) < 23
    everyone, nobody = generate("--threshold", "0"), generate("--threshold", "inf")
    for number in set(range(24)) - {5}:
        source = everyone if number in early else nobody
        assert done.hypotheses()[number] == source.hypotheses()[number]
    assert {row[0] for row in everyone.table("R").values()} == {"delegator", "empty"}


def test_log_probability_as_confidence(generate):
    probability = confidences(generate(*SEEN))
    log_probability = confidences(generate("--confidence", "log_probability", "--threshold", "0"))
    for number, value in probability.items():
        assert math.exp(log_probability[number]) == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize(
    "options",
    [(), ("--lenpen", "0.6", "--nbest", "2"), ("--max-len-a", "0.9", "--max-len-b", "2")],
    ids=["plain", "nbest", "max-len-a"],
)
def test_a_translation_does_not_depend_on_the_batch(generate, options):
    options = (*options, "--threshold", "0.14")
    together, alone = generate(*options), generate(*options, "--batch-size", "1")
    assert len({row[0] for row in together.table("R").values()}) > 1
    assert together.table("R") == alone.table("R")
    assert together.hypotheses() == alone.hypotheses()
    assert len(together.lines("H")) == len(alone.lines("H")) >= 24
    assert together.numbers("P") == pytest.approx(alone.numbers("P"), abs=1e-3)


def test_prefix_is_forced_on_every_network(generate):
    done = generate("--prefix-size", "2", "--threshold", "0.14")
    assert len({row[0] for row in done.table("R").values()}) > 1
    for number, (target,) in done.table("T").items():
        assert done.table("H")[number][1].split()[:2] == target.split()[:2]


def test_nbest_sampling_and_alignment(generate):
    assert len(generate("--nbest", "2").lines("H")) == 2 * 23 + 1
    sampled = generate("--sampling", "--nbest", "3", "--seed", "7")
    assert len(sampled.lines("H")) == 3 * 23 + 1
    same = generate("--sampling", "--nbest", "3", "--seed", "7", again=True)
    assert sampled.lines("H") == same.lines("H")
    assert len(generate("--print-alignment", "hard").lines("A")) == 24


def test_routes_go_to_a_file(generate, tmp_path):
    file = tmp_path / "routes"
    done = generate("--results-path", tmp_path, "--routes", file, "--batch-size", "10")
    assert "R-" not in done.out
    text = (tmp_path / "generate-test.txt").read_text().splitlines()
    assert len([line for line in text if line.startswith("H-")]) == 24
    assert len(file.read_text().splitlines()) == 24
    assert generate("--routes", "none").lines("R") == []


def test_controls(generate, team, plain):
    first = generate("--router", "always-0")
    assert {row[0] for row in first.table("R").values()} == {"expert-0", "empty"}
    random = generate("--router", "random")
    assert {row[0] for row in random.table("R").values()} == {"expert-0", "expert-1", "empty"}
    assert random.table("R") == generate("--router", "random", "--batch-size", "3").table("R")
    learned, second = generate(), generate("--router", "always-1")
    for number, (network, _) in learned.table("R").items():
        if network != "empty":
            source = {"expert-0": first, "expert-1": second}[network]
            assert learned.hypotheses()[number] == source.hypotheses()[number]
    assert {row[0] for row in generate("--router", "ensemble").table("R").values()} == {
        "ensemble",
        "empty",
    }
    both = f"{team / 'checkpoint_last.pt'}:{plain}"
    cascade = generate("--router", "cascade", path=both)
    assert {row[0] for row in cascade.table("R").values()} == {"cascade", "empty"}
    alone = generate(path=plain)  # a plain model is translated with as it is
    assert alone.lines("R") == []
    for number in set(range(24)) - {5}:
        assert cascade.hypotheses()[number] == alone.hypotheses()[number]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--router", "best"), "unknown router 'best'; known: learned"),
        (("--router", "always-2"), "there are 2 experts, numbered 0 to 1"),
        (("--router", "oracle"), "serves fairseq-validate, not generation"),
        (("--router", "cascade"), "give --path COLLABORATION:PLAIN_MODEL"),
        (("--threshold", "-1"), "threshold -1 is outside the range"),
        (("--threshold", "nan"), "threshold nan is outside the range"),
        (("--threshold", "high"), "threshold must be a number such as 0.6"),
        (("--score-reference",), "--score-reference does not go with"),
        (("--beam", "0"), "--beam must be at least 1, got 0"),
        (("--max-tokens", "4"), "--max-tokens 4 is less than the longest sentence has, "),
    ],
)
def test_what_cannot_be_done_is_said(generate, options, message):
    assert message in generate(*options, fails=True).log


def test_two_collaborations_cannot_be_mixed(generate, team):
    path = team / "checkpoint_last.pt"
    done = generate(path=f"{path}:{path}", fails=True)
    assert "2 of them collaborations: give one collaboration alone" in done.log


def test_typed_lines(shell, corpus, team, generate):
    typed = ["eins Meter", "", "zwei Jahre und drei und zwanzig Euro", "eins Meter", "acht Tage"]
    options = (
        *("fairseq-interactive", corpus.binary, *shell.PLUGIN, "--cpu", "--beam", "3"),
        *("--path", team / "checkpoint_last.pt", "--threshold", "0.14"),
    )
    text = "".join(f"{line}\n" for line in typed)
    single = shell(*options, given=text)
    three = shell(*options, "--buffer-size", "3", "--batch-size", "2", given=text)
    for done in (single, three):
        assert [row[0] for row in done.table("S").values()] == typed
        assert list(done.table("H")) == list(range(5))
        assert done.table("D")[1] == ["0.0", ""]
        assert done.table("R")[1][0] == "empty"
        assert done.table("R")[0] == done.table("R")[3]
    assert single.table("R") == three.table("R")
    assert single.hypotheses() == three.hypotheses()


def test_forced_words(shell, corpus, team):
    done = shell(
        *("fairseq-interactive", corpus.binary, *shell.PLUGIN, "--cpu", "--beam", "5"),
        *("--path", team / "checkpoint_last.pt", "--threshold", "0.14", "--constraints"),
        *("--buffer-size", "3", "--batch-size", "3"),
        given="eins Meter\tfifty\nacht Tage\nneun Jahre und drei Euro\tdays\n",
    )
    assert "fifty" in done.table("H")[0][1].split()
    assert "days" in done.table("H")[2][1].split()


@pytest.mark.parametrize(
    "options", [("--sampling", "--nbest", "3", "--beam", "3"), ("--constraints",)]
)
def test_routes_of_equal_lines_keep_their_numbers(shell, corpus, team, options):
    """Equal lines, of which each has its own translation, in batches that are sorted by length."""
    marks = ["", "\tfifty", "\tdays", ""] if options == ("--constraints",) else [""] * 4
    typed = [
        f"{line}{mark}" for mark in marks for line in ("eins Meter", "zwei Jahre und drei Euro")
    ]
    done = shell(
        *("fairseq-interactive", corpus.binary, *shell.PLUGIN, "--cpu", "--seed", "3", *options),
        *("--path", team / "checkpoint_last.pt", "--threshold", "0"),
        *("--buffer-size", "5", "--batch-size", "2"),
        given="".join(f"{line}\n" for line in typed),
    )
    assert list(done.table("H")) == list(range(8))
    assert sorted(done.table("R")) == list(range(8))
    scores = {number: float(row[0]) for number, row in done.table("H").items()}
    if options == ("--constraints",):
        return
    means = {}
    for line in done.lines("P"):  # of several for a sentence the first is the best
        number, _, text = line.partition("\t")
        words = [float(word) for word in text.split()]
        means.setdefault(int(number[2:]), 2 ** (sum(words) / len(words)))
    early = [number for number, row in done.table("R").items() if row[0] == "delegator"]
    assert early
    assert scores
    for number in early:
        assert float(done.table("R")[number][1]) == pytest.approx(means[number], abs=2e-4)


def test_a_team_needs_its_task_and_its_criterion(shell, corpus, team, tmp_path):
    data = (corpus.binary, "--cpu", "--user-dir", "translation")
    path = ("--path", team / "checkpoint_last.pt")
    message = "a Collaboration of Experts needs --task coe_translation; where none is given"
    assert message in shell("fairseq-generate", *data, *path, fails=True).log
    assert message in shell("fairseq-interactive", *data, *path, fails=True).log
    criterion = ("--criterion", "label_smoothed_cross_entropy", "--save-dir", tmp_path)
    words = (*data, *shell.TRAIN, "--max-update", "1", *shell.TEAM, *criterion)
    assert message in shell("fairseq-train", *words, "--task", "translation", fails=True).log
    log = shell("fairseq-train", *words, "--task", "coe_translation", fails=True).log
    assert "trains one network, not a delegator with its experts: give --criterion coe_label" in log


def test_pieces_are_put_together_once(shell, corpus, team, generate):
    both = ("--bpe", "sentencepiece", "--sentencepiece-model", "x", "--remove-bpe", "sentencepiece")
    message = "--bpe sentencepiece and --remove-bpe sentencepiece would put pieces together twice"
    assert message in generate(*both, fails=True).log
    words = (corpus.binary, *shell.PLUGIN, "--cpu", "--path", team / "checkpoint_last.pt")
    assert message in shell("fairseq-interactive", *words, *both, fails=True).log


def test_data_that_are_not_there(generate, shell, team, tmp_path):
    words = (tmp_path / "no", *shell.PLUGIN, "--cpu", "--path", team / "checkpoint_last.pt")
    assert (
        "no: no such folder; fairseq-preprocess makes it"
        in shell("fairseq-generate", *words, fails=True).log
    )
    log = generate("--routes", tmp_path / "no" / "routes", fails=True).log
    assert "routes cannot be written: No such file or directory" in log
