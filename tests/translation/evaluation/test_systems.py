"""Systems, thresholds and tables from translations made by hand: no network runs."""

import copy
import json

import pytest
import torch
from sacrebleu import corpus_bleu

from translation.evaluation.calibrate import load_points
from translation.evaluation.metrics import CorpusQuality, Scoring
from translation.evaluation.systems import routed_systems
from translation.evaluation.translations import OfNetwork, Selection, Translations

REFERENCE = [
    "the cat sat on the mat",
    "a dog barks at night",
    "we are here to stay",
    "no more of it",
]
WORSE = ["the cat sat on a mat", "a dog bark at night", "we were here", "no more of that"]


def network(text, macs):
    return OfNetwork(list(text), [0.9, 0.2, 0.6, 0.4], [macs] * 4, [macs / 1e6] * 4)


@pytest.fixture
def translations():
    """A delegator that is right twice, two experts of which each is right on its own half."""
    first, second = REFERENCE[:2] + WORSE[2:], WORSE[:2] + REFERENCE[2:]
    provenance = {"confidence": "probability", "beam": 3, "lenpen": 1.0, "direction": "de-en"}
    provenance |= {"checkpoint": "team.pt", "checkpoint_sha256": "1" * 64}
    provenance["controls_sha256"] = {"delegator-alone": "2" * 64, "expert-alone": "3" * 64}
    return Translations(
        provenance,
        ["s 1", "s 2", "s 3", "s 4"],
        list(REFERENCE),
        Selection([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2, [2.0] * 4, [1e-6] * 4),
        {
            "delegator": network([REFERENCE[0], *WORSE[1:3], REFERENCE[3]], 10.0),
            "expert-0": network(first, 100.0),
            "expert-1": network(second, 200.0),
            "ensemble": network(REFERENCE, 300.0),
            "delegator-alone": network(WORSE, 10.0),
            "expert-alone": network(REFERENCE, 100.0),
        },
    )


@pytest.fixture
def file(translations, tmp_path):
    translations.save(tmp_path / "made.json")
    return tmp_path / "made.json"


def test_mixtures_by_hand(translations):
    system = routed_systems(translations)["CoE"]
    whole = system.at(float("inf"))
    assert whole.text == REFERENCE  # every sentence goes to the expert that is right
    assert (whole.macs, whole.exit_rate) == (2 + 150, 0)  # the delegator selects, and no more
    half = system.at(0.5)
    assert half.text == [REFERENCE[0], REFERENCE[1], WORSE[2], REFERENCE[3]]
    assert (half.macs, half.exit_rate) == (10 + (100 + 200) / 4, 0.5)
    cascade = routed_systems(translations)["cascade"]
    assert cascade.at(float("inf")).macs == 100  # its first network does not run at all
    assert cascade.at(2.0).macs == 110
    curve = cascade.stages.curve("BLEU", "macs")
    assert curve.cost.tolist() == [100, 85, 60, 35, 10]
    assert curve.quality[0] == pytest.approx(100)


def test_translations_survive_their_file(translations, file):
    # An empty one, by log-probability.
    translations.networks["delegator"].confidence[0] = -float("inf")
    translations.save(file)
    assert Translations.load(file) == translations


@pytest.mark.slow
def test_thresholds_are_refused_with_what_they_were_not_fitted_with(said, file, tmp_path):
    points = tmp_path / "points.json"
    assert said("calibrate", file, "best", "--out", points)[0] == 0
    stored = load_points(points).points
    fitted = stored["CoE"][0].fitted_with
    assert (fitted["confidence"], fitted["beam"], fitted["router"]) == ("probability", 3, "learned")
    assert (len(fitted["checkpoint"]), fitted["direction"]) == (64, "de-en")
    assert set(stored["cascade"][0].fitted_with) >= {"delegator-alone", "expert-alone"}
    assert said("curve", file, "--points", points, "--out", tmp_path / "x")[0] == 0
    other = json.loads(file.read_text())
    for name, value, message in (
        ("beam", 5, "threshold 'best' of CoE was fitted with beam 3, not 5: decode and calibrate"),
        ("confidence", "log_probability", "with confidence probability, not log_probability"),
        ("checkpoint_sha256", "0" * 64, "not 000000000000...: decode"),
        ("direction", "en-de", "direction de-en, not en-de"),
    ):
        changed = {**other, "provenance": {**other["provenance"], name: value}}
        (tmp_path / "changed.json").write_text(json.dumps(changed))
        words = ("curve", tmp_path / "changed.json", "--points", points, "--out", tmp_path / "x")
        status, _, error = said(*words)
        assert (status, message in error) == (2, True), error


@pytest.mark.slow
def test_points_of_the_version_before(said, file, tmp_path):
    """Without a task, and without what they were fitted with."""
    points = tmp_path / "points.json"
    assert said("calibrate", file, "best", "--out", points)[0] == 0
    older = json.loads(points.read_text())
    del older["task"]
    for some in older["points"].values():
        for point in some:
            del point["fitted_with"]
    points.write_text(json.dumps(older))
    assert said("curve", file, "--points", points, "--out", tmp_path / "x")[0] == 0
    points.write_text(json.dumps({**older, "task": "vision"}))
    status, _, error = said("curve", file, "--points", points, "--out", tmp_path / "x")
    assert (status, "it is of the task vision, not of translation" in error) == (2, True)


def test_a_network_that_has_diverged_is_told(translations, tmp_path):
    broken = copy.deepcopy(translations)
    broken.networks["expert-1"].confidence[3] = float("nan")
    with pytest.raises(ValueError, match=r"1 of 4 values of confidence of expert-1 .* lower learn"):
        broken.save(tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("wrong", ["no list", [1, 2], [None] * 4, [{}] * 4])
@pytest.mark.parametrize("column", ["text", "confidence", "macs"])
def test_columns_of_other_types(file, tmp_path, column, wrong):
    values = json.loads(file.read_text())
    values["networks"]["delegator"][column] = wrong
    (tmp_path / "x.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"x\.json: "):
        Translations.load(tmp_path / "x.json")


def test_another_tokenizer(translations):
    plain, characters = (
        routed_systems(translations, scoring)["CoE"].stages.at(0.5, "BLEU").quality
        for scoring in (None, Scoring(tokenize="char"))
    )
    assert plain != characters
    text = routed_systems(translations)["CoE"].at(0.5).text
    assert characters == pytest.approx(
        corpus_bleu(text, [translations.reference], tokenize="char").score
    )
    with pytest.raises(ValueError, match="unknown tokenizer 'chars'; known: 13a, char"):
        CorpusQuality("BLEU", translations.reference, Scoring(tokenize="chars"))


def test_many_scores_at_once_are_sacrebleus():
    """Of no words, of one word, of no match of an order, of short and of long ones."""
    reference = ["the cat sat on the mat today", "a dog barks", "we are here", "no", "more of it"]
    systems = [
        ["the cat sat on the mat today", "a dog barks", "we are here", "no", "more of it"],
        ["the cat on sat mat", "dog", "here are we", "", "it"],
        ["", "", "", "", ""],
        ["the", "a", "we", "x", "y"],
        ["x y z w v", "u", "t", "s", "r"],
        ["the cat sat on the mat today and more of it", "a dog", "we are", "no no", "more"],
    ]
    quality = CorpusQuality("BLEU", reference)
    sums = torch.stack([quality.counts(text).sum(0) for text in systems])
    expected = [corpus_bleu(text, [reference]).score for text in systems]
    assert quality.scores(sums).tolist() == pytest.approx(expected, abs=1e-9)
    each = [corpus_bleu([text], [[r]]).score for text, r in zip(systems[1], reference, strict=True)]
    assert quality.of_sentences(systems[1]).tolist() == pytest.approx(each, abs=1e-9)
