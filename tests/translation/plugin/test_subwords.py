"""Subword regularisation: other pieces in every epoch, the same in every training and after a resume."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary

from translation.commands.cli import main
from translation.corpora.vocabulary import encode_file, load_pieces, real_pieces, train_vocabulary
from translation.plugin.subwords import SubwordSampler, check_sampling


@pytest.fixture(scope="module")
def data(corpus, shell, tmp_path_factory):
    """The small corpus cut by a vocabulary of its own, with a dictionary of all of its pieces."""
    folder = tmp_path_factory.mktemp("subwords")
    texts = {(n, s): corpus.text / f"{n}.{s}" for n in ("train", "valid") for s in ("de", "en")}
    train = [texts["train", side] for side in ("de", "en")]
    words = ["vocabulary", *train, "--size", 60, "--user-symbol", "<2en>"]
    words += ["--out", folder / "joint.model", "--dictionary", folder / "dict.txt"]
    assert main([str(word) for word in words]) == 0
    for (name, side), text in texts.items():
        encode_file(folder / "joint.model", text, folder / f"{name}.{side}")
    shell(
        *("fairseq-preprocess", "-s", "de", "-t", "en", "--joined-dictionary"),
        *("--srcdict", folder / "dict.txt", "--trainpref", folder / "train"),
        *("--validpref", folder / "valid", "--destdir", folder / "bin"),
    )
    return folder


@pytest.fixture(scope="module")
def dictionary(data):
    return Dictionary.load(str(data / "bin/dict.de.txt"))


@pytest.fixture(scope="module")
def sampler(data, dictionary):
    return SubwordSampler(data / "joint.model", 0.1, dictionary)


@pytest.fixture(scope="module")
def sentences(data):
    return [line.split() for line in (data / "train.de").read_text().splitlines()[:30]]


def test_the_dictionary_has_all_pieces(data, dictionary):
    pieces = real_pieces(load_pieces(data / "joint.model"))
    assert len(pieces) == 57  # of 60, without the unknown piece and both ends
    assert all(dictionary.index(piece) != dictionary.unk() for piece in pieces)


def test_a_key_gives_the_same_pieces_whatever_came_before(sampler, sentences):
    first = [sampler.sample(pieces, f"1 {n} source") for n, pieces in enumerate(sentences)]
    backwards = [
        sampler.sample(pieces, f"1 {n} source") for n, pieces in reversed([*enumerate(sentences)])
    ]
    assert first == backwards[::-1]
    later = [sampler.sample(pieces, f"2 {n} source") for n, pieces in enumerate(sentences)]
    assert sum(a != b for a, b in zip(first, later, strict=True)) > 20
    assert sum(a != b for a, b in zip(first, sentences, strict=True)) > 20
    for pieces, other in zip(sentences, first, strict=True):
        assert "".join(pieces) == "".join(other)


def test_more_is_cut_by_a_smaller_exponent(data, dictionary, sentences):
    def count(alpha):
        sampler = SubwordSampler(data / "joint.model", alpha, dictionary)
        return sum(len(sampler.sample(p, f"1 {n} source")) for n, p in enumerate(sentences))

    assert count(0.01) > count(1.0) >= sum(map(len, sentences))


def test_bpe_dropout(corpus, tmp_path, sentences):
    model = tmp_path / "bpe.model"
    train_vocabulary([corpus.text / "train.de"], 60, model, "bpe")
    pieces, words = load_pieces(model), Dictionary()
    for piece in real_pieces(pieces):
        words.add_symbol(piece)
    cut = pieces.encode("zwei Tage und drei Meter", out_type=str)
    lengths = []
    for alpha in (0.05, 0.9):
        sampler = SubwordSampler(model, alpha, words)
        cuts = [sampler.sample(cut, str(key)) for key in range(20)]
        assert {"".join(sampled) for sampled in cuts} == {"".join(cut)}
        lengths.append(sum(map(len, cuts)))
    assert 20 * len(cut) <= lengths[0] < lengths[1]


def test_what_stays_as_it_is(sampler, dictionary, data, sentences):
    tagged = ["▁", "<2en>", *sentences[0]]
    for key in range(10):
        assert sampler.sample(tagged, str(key))[:2] == ["▁", "<2en>"]
    numbers = torch.tensor([*map(dictionary.index, sentences[0]), dictionary.eos()])
    cut = sampler.cut(numbers, "3")
    assert (cut.dtype, cut[-1]) == (numbers.dtype, dictionary.eos())
    assert dictionary.unk() not in cut
    unknown = torch.tensor([dictionary.unk(), *numbers.tolist()])
    assert torch.equal(sampler.cut(unknown, "3"), unknown)
    only_end = numbers[-1:]
    assert torch.equal(sampler.cut(only_end, "3"), only_end)
    short = SubwordSampler(data / "joint.model", 0.01, dictionary, longest=len(numbers))
    assert all(len(short.cut(numbers, str(key))) <= len(numbers) for key in range(10))


@pytest.fixture(scope="module")
def train(data, shell):
    def call(folder, *options, of=None, **how):
        words = [*shell.PLUGIN, *shell.TRAIN, *(of or shell.TEAM), "--save-dir", folder]
        sampling = ("--subword-sampling", 0.1, "--subword-model", data / "joint.model")
        return shell("fairseq-train", data / "bin", *words, *sampling, *options, **how)

    return call


def saved(folder):
    return torch.load(folder / "checkpoint_last.pt", weights_only=True)["model"]


def equal(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


def test_resume_ends_where_a_training_without_a_stop_does(train, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ("--max-update", "24", "--disable-validation", "--save-interval-updates", "15")
    train(whole, *options)
    parts.mkdir()
    (middle,) = whole.glob("checkpoint_*_15.pt")
    assert int(middle.stem.split("_")[1]) > 1  # inside a later epoch
    shutil.copy(middle, parts / "checkpoint_last.pt")
    train(parts, *options)
    assert equal(saved(whole), saved(parts))
    train(tmp_path / "other", *options, "--subword-sampling", "0.5")
    assert not equal(saved(whole), saved(tmp_path / "other"))


def test_team_and_controls_see_the_same_pieces(train, tmp_path, monkeypatch):
    from translation.plugin.batches import WholePairDataset

    seen = {}
    collater = WholePairDataset.collater

    def remembering(self, samples, **options):
        if self.sampler is not None:
            batch = [
                (sample["id"], sample["source"].tolist(), sample["target"].tolist())
                for sample in samples
            ]
            seen[system].append((self.epoch, batch))
        return collater(self, samples, **options)

    monkeypatch.setattr(WholePairDataset, "collater", remembering)
    plain = ("--arch", "transformer_tiny", "--criterion", "label_smoothed_cross_entropy")
    for system, of in (("team", None), ("control", plain)):
        seen[system] = []
        options = ("--max-update", "14", "--disable-validation", "--no-save")
        options += ("--data-buffer-size", "0")  # no thread that still loads for the one before
        train(tmp_path / system, *options, of=of)
    count = min(map(len, seen.values()))  # what is loaded ahead at the end is not trained on
    assert count >= 14
    assert seen["team"][:count] == seen["control"][:count]
    by_epoch = {}
    for epoch, batch in seen["team"]:
        by_epoch.setdefault(epoch, {}).update({number: source for number, source, _ in batch})
    assert len(by_epoch) > 1
    common = by_epoch[1].keys() & by_epoch[2].keys()
    assert sum(by_epoch[1][n] != by_epoch[2][n] for n in common) > len(common) / 2


def test_one_side(data, dictionary):
    from translation.plugin.subwords import SIDES

    sampler = SubwordSampler(data / "joint.model", 0.1, dictionary, SIDES["source"])
    assert sampler.sides == ("source",)


def test_refused(train, tmp_path, data, corpus):
    for options, message in (
        (("--subword-sampling", "2"), "--subword-sampling must be in [0, 1], got 2.0"),
        (("--subword-model", tmp_path / "no.model"), "no.model: no such file"),
    ):
        log = train(tmp_path / "x", "--max-update", "2", *options, fails=True).log
        assert message in log[-500:]
    with pytest.raises(ValueError, match="needs --subword-model, SentencePiece's model that"):
        check_sampling(SimpleNamespace(subword_sampling=0.1, subword_model=None))
    with pytest.raises(ValueError, match=r"57 of 57 pieces of .* are not in the dictionary"):
        SubwordSampler(data / "joint.model", 0.1, Dictionary())
