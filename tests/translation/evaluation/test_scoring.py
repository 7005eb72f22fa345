"""Scores of any language: sacreBLEU's own numbers by every tokenizer; a word where one does not serve."""

import gzip
import io
import json
import sys
from types import SimpleNamespace

import pytest
import sacrebleu

from translation.evaluation.scoring import Scoring, build_metric, score, sentence_scores
from translation.evaluation.scripts import spaces_warning

CHINESE = ["一个人在公园里骑自行车。", "两只狗在草地上奔跑。", "The 3 cats."]
SYSTEM = ["一个男人在公园骑自行车。", "两只小狗在草地上跑。", "the 3 cats."]


@pytest.fixture
def texts(tmp_path):
    for name, lines in (("system", SYSTEM), ("reference", CHINESE)):
        content = "".join(f"{line}\n" for line in lines).encode()
        (tmp_path / name).write_bytes(content)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path


@pytest.mark.parametrize("tokenize", ["13a", "zh", "char", "intl", "none"])
@pytest.mark.parametrize("lowercase", [False, True])
def test_scores_are_sacrebleus(tokenize, lowercase):
    scoring = Scoring(tokenize, lowercase, word_order=2)
    bleu, chrf = score(SYSTEM, [CHINESE], ("BLEU", "chrF"), scoring)
    wanted = sacrebleu.corpus_bleu(SYSTEM, [CHINESE], tokenize=tokenize, lowercase=lowercase)
    assert bleu.value == wanted.score
    wanted = sacrebleu.corpus_chrf(SYSTEM, [CHINESE], word_order=2)
    assert lowercase or chrf.value == wanted.score
    assert f"tok:{tokenize}" in bleu.signature
    assert "nw:2" in chrf.signature


def test_sentences_are_scored_as_sacrebleu_scores_them():
    rows = sentence_scores(SYSTEM, [CHINESE], scoring=Scoring("zh"))
    for row, system, reference in zip(rows, SYSTEM, CHINESE, strict=True):
        assert row["BLEU"] == sacrebleu.sentence_bleu(system, [reference], tokenize="zh").score
        assert row["chrF"] == sacrebleu.sentence_chrf(system, [reference]).score


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("一个人在公园里骑自行车", "(Chinese), and BLEU's tokenizer 13a .* --tokenize zh"),
        ("男の人が公園で自転車に乗っている", "(Japanese), .* --tokenize ja-mecab"),
        ("ผู้ชายกำลังขี่จักรยานในสวนสาธารณะ", "(Thai), .* --tokenize flores200"),
        ("ຜູ້ຊາຍຂີ່ລົດຖີບ", "(Lao)"),
        ("បុរសម្នាក់ជិះកង់", "(Khmer)"),
        ("လူတစ်ယောက် စက်ဘီးစီးနေသည်", "(Burmese)"),
        ("མི་ཞིག་རྐང་འཁོར་བཞོན་", "(Tibetan)"),
    ],
)
def test_languages_without_spaces_are_noticed(line, advice):
    import re

    for tokenize in (None, "13a", "intl", "none"):
        warning = spaces_warning(["", line, "COVID-19"], tokenize)
        assert warning is not None
        pattern = re.escape(advice.split(" .* ")[0]).replace("13a", ".*") + ".*"
        assert re.search(pattern, warning)
        assert advice.rpartition(" ")[2].rstrip(")").lstrip("(") in warning
    for tokenize in ("zh", "char", "flores200", "ja-mecab"):
        assert spaces_warning([line], tokenize) is None


@pytest.mark.parametrize(
    "line",
    ["a man rides", "мужчина едет", "남자가 자전거를 탄다", "رجل يركب", "यह एक घर है", "", "123"],
)
def test_languages_with_spaces_are_not(line):
    assert spaces_warning([line], None) is None


def test_the_command_warns_and_takes_a_tokenizer(said, texts):
    words = ("score", texts / "system", "-r", texts / "reference")
    status, out, error = said(*words)
    assert status == 0
    assert "warning: the reference is written without spaces between words (Chinese)" in error
    low = float(out.split("BLEU")[1].split()[0])
    status, out, error = said(*words, "--tokenize", "zh", "--chrf-word-order", "2", "--lowercase")
    assert (status, error) == (0, "")
    assert float(out.split("BLEU")[1].split()[0]) > low + 5
    assert "chrF++" in out
    assert "tok:zh" in out
    assert "case:lc" in out


def test_gzip_and_standard_input(said, texts, monkeypatch):
    words = ("score", texts / "system", "-r", texts / "reference", "--tokenize", "zh")
    wanted = said(*words)[1].replace(str(texts / "system"), "")
    packed = said("score", texts / "system.gz", "-r", texts / "reference.gz", "--tokenize", "zh")
    assert packed[1].replace(str(texts / "system.gz"), "") == wanted
    stdin = io.TextIOWrapper(io.BytesIO((texts / "system").read_bytes()))
    monkeypatch.setattr("sys.stdin", stdin)
    typed = said("score", "-", "-r", texts / "reference", "--tokenize", "zh")
    assert typed[1].replace("-\n", "\n", 1) == wanted
    assert "standard input (-) can be one text" in said("score", "-", "-r", "-")[2]


def test_json_and_sentences(said, texts):
    words = ("score", texts / "system", "-r", texts / "reference", "--tokenize", "zh")
    status, out, _ = said(*words, "--json", "--sentences")
    assert status == 0
    (system,) = json.loads(out)["systems"].values()
    wanted = sacrebleu.corpus_bleu(SYSTEM, [CHINESE], tokenize="zh")
    assert system["scores"]["BLEU"]["value"] == wanted.score
    assert "tok:zh" in system["scores"]["BLEU"]["signature"]
    assert len(system["sentences"]) == 3
    assert system["sentences"][2]["chrF"] == sacrebleu.sentence_chrf(SYSTEM[2], CHINESE[2:]).score
    lines = said(*words, "--sentences")[1].splitlines()
    assert lines[0].split("\t")[1:3] == ["BLEU", "chrF"]
    assert lines[3].split("\t")[0] == "3"
    assert lines[4] == str(texts / "system")
    both = ("score", texts / "system", texts / "reference", "-r", texts / "reference", "--json")
    systems = json.loads(said(*both, "--tokenize", "zh", "--resamples", "20")[1])["systems"]
    assert systems[str(texts / "reference")]["scores"]["chrF"]["p_value"] < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tokenize", "klingon"), "unknown tokenizer 'klingon'; known: 13a, char, flores101"),
        (("--chrf-word-order", "99"), "--chrf-word-order: must be at most 10, got 99"),
        (("--chrf-word-order", "-1"), "must be at least 0, got -1"),
        (("--resamples", "0"), "must be at least 1, got 0"),
        (("--resamples", "1" * 12), "--resamples: must be at most 1000000, got 111111111111"),
    ],
)
def test_scoring_that_cannot_be(said, texts, options, message):
    status, _, error = said("score", texts / "system", "-r", texts / "reference", *options)
    assert (status, message in error) == (2, True), error
    assert len(error.splitlines()) == 1


def test_a_text_without_line_ends_is_no_sentence(said, tmp_path):
    """sacreBLEU takes hours and gigabytes for it."""
    whole, other = tmp_path / "whole", tmp_path / "other"
    whole.write_text("a\n" + "eins zwei " * 5001 + "\n")
    other.write_text("a\nb\n")
    for system, reference, name in ((whole, other, "the system"), (other, whole, "reference 0")):
        status, _, error = said("score", system, "-r", reference)
        message = f"line 2 of {name} has 50,010 characters, sentences of at most 50,000 are scored"
        assert (status, message in error) == (2, True), error


@pytest.mark.parametrize(
    ("tokenize", "line", "words"),
    [
        ("ja-mecab", "私は学生です。", "私 は 学生 です 。"),
        ("ko-mecab", "나는 학생이다.", "나 는 학생 이 다 ."),
    ],
)
def test_words_of_japanese_and_korean(tokenize, line, words):
    metric = build_metric("BLEU", Scoring(tokenize))
    assert metric.tokenizer(line).split() == words.split()
    (bleu,) = score([line], [[line]], scoring=Scoring(tokenize))
    assert (round(bleu.value), f"tok:{tokenize}" in bleu.signature) == (100, True)


def test_pieces_of_flores(tmp_path, monkeypatch):
    import sentencepiece
    from sacrebleu.tokenizers import tokenizer_spm

    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    (tmp_path / "models").mkdir()
    for tokenize, name in (
        ("flores200", "flores200sacrebleuspm"),
        ("flores101", "sacrebleu_tokenizer_spm.model"),
        ("spBLEU-1K", "spbleu-1k_tokenizer_spm.model"),
    ):
        model = tmp_path / "models" / name
        model.write_bytes(b"half a download")
        with pytest.raises(ValueError, match=f"its model {model} is damaged; remove it"):
            build_metric("BLEU", Scoring(tokenize))
        with model.open("wb") as file:  # as small as one can be; sacreBLEU's own is downloaded
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(CHINESE * 9),
                model_writer=file,
                vocab_size=40,
                hard_vocab_limit=False,
                minloglevel=2,
            )
        cut = sentencepiece.SentencePieceProcessor(model_file=str(model))
        pieces = [
            [" ".join(cut.encode(line, out_type=str)) for line in text]
            for text in (SYSTEM, CHINESE)
        ]
        (bleu,) = score(SYSTEM, [CHINESE], scoring=Scoring(tokenize))
        assert bleu.value == sacrebleu.corpus_bleu(pieces[0], pieces[1:], tokenize="none").score


def test_packages_and_models_that_are_missing(monkeypatch):
    def missing(*arguments, **options):
        raise RuntimeError("\n\nneeds extra\n\n dependencies")

    monkeypatch.setattr("translation.evaluation.scoring.BLEU.__init__", missing)
    with pytest.raises(ValueError, match=r"pip install 'sacrebleu\[ja\]'"):
        build_metric("BLEU", Scoring("ja-mecab"))
    with pytest.raises(ValueError, match="downloads its model on first use, which needs the"):
        build_metric("BLEU", Scoring("flores200"))


@pytest.mark.process
def test_scoring_loads_no_torch(apart):
    pytest.importorskip("sacrebleu")
    import subprocess
    import sys

    code = "import sys, translation.evaluation.scoring, translation.evaluation.scripts;"
    code += "import translation.corpora.text, translation.corpora.vocabulary;"
    code += "print([name for name in ('torch', 'fairseq', 'numba') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class _Comet:
    """What the package unbabel-comet hands out, with a score that can be worked out: letters in common."""

    @staticmethod
    def load_from_checkpoint(path):
        if "damaged" in path:
            raise RuntimeError("PytorchStreamReader failed\nat length")
        return _Comet()

    def predict(self, rows, batch_size, gpus, progress_bar):
        assert (gpus, progress_bar) == (0, False)
        scores = [len({*row["mt"]} & {*row["ref"]}) / len({*row["ref"]}) for row in rows]
        assert all(row["src"].startswith("source") for row in rows)
        return SimpleNamespace(scores=scores, system_score=sum(scores) / len(scores))


def test_comet_by_a_model_that_is_here(said, texts, monkeypatch):
    source, model = texts / "source", texts / "model.ckpt"
    source.write_text("source 1\nsource 2\nsource 3\n")
    words = ("score", texts / "system", texts / "reference", "-r", texts / "reference")
    words += ("--tokenize", "zh", "--resamples", 10, "--comet", model)
    assert "go together: COMET looks at the source" in said(*words)[2]
    words += ("--source", source)
    assert "model.ckpt: no such file; give a COMET checkpoint that is here" in said(*words)[2]
    model.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "comet", None)
    status, _, error = said(*words)
    assert (status, error.count("\n")) == (2, 1)
    assert "needs the package unbabel-comet, which is not installed here: pip install" in error
    monkeypatch.setitem(sys.modules, "comet", _Comet)
    status, out, _ = said(*words, "--json")
    assert status == 0
    systems = json.loads(out)["systems"]
    best = systems[str(texts / "reference")]["scores"]["COMET"]
    assert best["value"] == 100
    assert best["p_value"] < 1
    assert systems[str(texts / "system")]["scores"]["COMET"]["value"] < 95
    assert "COMET          100.00" in said(*words)[1]
    source.write_text("source 1\n")
    assert "has 3 lines, the source 1" in said(*words)[2]
    model.rename(texts / "damaged.ckpt")
    words = (*words[:-4], "--comet", texts / "damaged.ckpt", "--source", source)
    source.write_text("source 1\nsource 2\nsource 3\n")
    assert "damaged.ckpt: not loaded: RuntimeError: PytorchStreamReader failed" in said(*words)[2]
