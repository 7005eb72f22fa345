"""Quality of translations: sacreBLEU with its signature, chrF, TER, tokenised BLEU, paired bootstrap.

Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sacrebleu.metrics import BLEU, CHRF, TER

TOKENISED_BLEU = "tokenised BLEU"
REPORTED = ("BLEU", "chrF", "TER", TOKENISED_BLEU)
_LONGEST_LINE = 50_000  # characters: TER and chrF of a text without line ends take hours
_BY_LETTERS = ("zh", "ja-mecab", "ko-mecab", "char")  # TER cuts such texts by their letters
_DOWNLOADS = ("spm", "flores101", "flores200", "spBLEU-1K")


class Scoring(NamedTuple):
    """How texts are compared; the same for all metrics that know the option."""

    tokenize: str | None = None  # of BLEU, by sacreBLEU's names: 13a (its default), zh, intl ...
    lowercase: bool = False
    word_order: int = 0  # of chrF: 2 makes it chrF++


class Score(NamedTuple):
    """One metric of one system."""

    metric: str
    value: float
    signature: str
    p_value: float | None = (
        None  # against the first system, paired bootstrap; None: of the first itself
    )
    mean: float | None = None  # of the resamples of a bootstrap
    half_width: float | None = None  # of the 95% confidence interval


def score(
    system: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] = ("BLEU",),
    scoring: Scoring | None = None,
    num_resamples: int = 1,
) -> list[Score]:
    """Corpus scores of one system, all by sacreBLEU.

    Args:
        system: one translation a sentence, detokenised.
        references: one or several reference texts.
        metrics: of BLEU, chrF, TER, and "tokenised BLEU": 4-gram BLEU over words as they are separated by
            spaces in the texts, which is what fairseq-score prints.
        scoring: default: sacreBLEU's.
        num_resamples: of the bootstrap that gives mean and interval; 1: none.

    Raises:
        ValueError: texts of different lengths, a line of over 50,000 characters, an unknown metric, or a
            tokenizer that cannot be loaded.

    Example:
        >>> round(score(["the cat sat on the mat"], [["the cat sat on the mat"]])[0].value)
        100
    """
    _check_lengths(system, references)
    scores = []
    for name in metrics:
        metric = build_metric(name, scoring)
        texts = [list(text) for text in references]
        result = metric.corpus_score(list(system), texts)
        score = Score(name, result.score, str(metric.get_signature()))
        if num_resamples > 1:
            mean, half_width = _interval(metric, system, texts, num_resamples)
            score = score._replace(mean=mean, half_width=half_width)
        scores.append(score)
    return scores


def _interval(
    metric: Any, system: Sequence[str], references: list[list[str]], num_resamples: int
) -> tuple[float, float]:
    """Mean of the resamples and half of their 95% interval, as sacreBLEU's paired test has them."""
    import numpy
    from sacrebleu.significance import _bootstrap_resample, estimate_ci

    stats = metric._extract_corpus_statistics(list(system), references)
    _, resampled = _bootstrap_resample(stats, metric, num_resamples)
    mean, half_width = estimate_ci(numpy.array([score.score for score in resampled]))
    return float(mean), float(half_width)


def sentence_scores(
    system: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] = ("BLEU", "chrF"),
    scoring: Scoring | None = None,
) -> list[dict[str, float]]:
    """Scores of every sentence alone; BLEU over the n-grams that the sentence has (effective order).

    Args:
        system: one translation a sentence, detokenised.
        references: one or several reference texts.
        metrics: as in `score`.
        scoring: default: sacreBLEU's.

    Raises:
        ValueError: as `score`.

    Example:
        >>> rows = sentence_scores(["a cat", "a dog"], [["a cat", "a bird"]], ["chrF"])
        >>> [round(row["chrF"]) for row in rows]
        [100, 10]
    """
    _check_lengths(system, references)
    built = {name: build_metric(name, scoring, effective_order=True) for name in metrics}
    return [
        {name: metric.sentence_score(line, list(texts)).score for name, metric in built.items()}
        for line, *texts in zip(system, *references, strict=True)
    ]


def compare(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] = ("BLEU", "chrF"),
    *,
    num_resamples: int = 1000,
    scoring: Scoring | None = None,
) -> dict[str, list[Score]]:
    """Scores of several systems; every one but the first is tested against the first.

    Paired bootstrap (Koehn 2004) as sacreBLEU has it, seeded, so it gives the same every time.

    Args:
        systems: translations by name; the first is the baseline.
        references: one or several reference texts.
        metrics: as in `score`.
        num_resamples: of the bootstrap.
        scoring: default: sacreBLEU's.

    Raises:
        ValueError: fewer than two systems, or as `score`.
    """
    if len(systems) < 2:
        raise ValueError(f"a comparison needs two systems or more, got {len(systems)}")
    from sacrebleu.significance import PairedTest  # loads numpy

    scores = {name: score(text, references, metrics, scoring) for name, text in systems.items()}
    named = [(name, list(text)) for name, text in systems.items()]
    texts = list(map(list, references))
    compared: dict[str, list[Score]] = {name: [] for name in systems}
    for place, metric in enumerate(metrics):  # one by one: two kinds of BLEU would share a name
        test = PairedTest(
            named,
            {metric: build_metric(metric, scoring)},
            texts,
            test_type="bs",
            n_samples=num_resamples,
        )
        _, columns = test()
        (results,) = (column for title, column in columns.items() if title != "System")
        for name, result in zip(systems, results, strict=True):
            unpaired = scores[name][place]
            compared[name].append(
                unpaired._replace(
                    p_value=_plain(result.p_value),
                    mean=_plain(result.mean),
                    half_width=_plain(result.ci),
                )
            )
    return compared


def _plain(value: Any) -> float | None:
    return None if value is None else float(value)


def _check_lengths(system: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    for number, reference in enumerate(references):
        if len(reference) != len(system):
            raise ValueError(
                f"line counts differ: the system has {len(system)} translations, reference {number} has "
                f"{len(reference)} lines"
            )

    for name, lines in (
        ("the system", system),
        *((f"reference {n}", r) for n, r in enumerate(references)),
    ):
        longest = max(range(len(lines)), key=lambda row: len(lines[row]), default=0)
        if lines and len(lines[longest]) > _LONGEST_LINE:
            raise ValueError(
                f"line {longest + 1} of {name} has {len(lines[longest]):,} characters, sentences of at most "
                f"{_LONGEST_LINE:,} are scored: the time for one grows as its square"
            )


def build_metric(name: str, scoring: Scoring | None = None, effective_order: bool = False) -> Any:
    """A metric of sacreBLEU.

    Args:
        name: of `REPORTED`.
        scoring: default: sacreBLEU's.
        effective_order: of BLEU: for sentences that are shorter than four words.

    Raises:
        ValueError: unknown, or a tokenizer that sacreBLEU does not know or cannot load.

    Example:
        >>> build_metric("BLEU", Scoring(tokenize="klingon"))
        Traceback (most recent call last):
        ...
        ValueError: unknown tokenizer 'klingon'; known: 13a, char, flores101, flores200, intl, ja-mecab, ...
    """
    how = scoring or Scoring()
    builders: dict[str, Callable[[], Any]] = {
        "BLEU": lambda: _bleu(how, effective_order),
        "chrF": lambda: CHRF(lowercase=how.lowercase, word_order=how.word_order),
        "TER": lambda: TER(
            case_sensitive=False,
            normalized=how.tokenize in _BY_LETTERS,
            asian_support=how.tokenize in _BY_LETTERS,
        ),
        TOKENISED_BLEU: lambda: BLEU(
            lowercase=how.lowercase,
            tokenize="none",
            smooth_method="none",
            force=True,
            effective_order=effective_order,
        ),
    }
    if name not in builders:
        raise ValueError(f"unknown metric {name!r}; known: {', '.join(builders)}")
    return builders[name]()


def _bleu(how: Scoring, effective_order: bool) -> BLEU:
    known = sorted(BLEU.TOKENIZERS)
    if how.tokenize is not None and how.tokenize not in known:
        raise ValueError(f"unknown tokenizer {how.tokenize!r}; known: {', '.join(known)}")
    try:
        return BLEU(lowercase=how.lowercase, tokenize=how.tokenize, effective_order=effective_order)
    except (AssertionError, ImportError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"tokenizer {how.tokenize!r} cannot be loaded ({type(error).__name__}): "
            f"{_remedy(how.tokenize or '', error)}"
        ) from error


def _remedy(tokenize: str, error: Exception) -> str:
    """What to do where a tokenizer cannot be loaded."""
    if tokenize in _DOWNLOADS:
        from sacrebleu.tokenizers import tokenizer_spm

        address = tokenizer_spm.SPM_MODELS[tokenize]["url"]
        model = Path(tokenizer_spm.SACREBLEU_DIR, "models", address.rpartition("/")[2])
        if model.exists():
            return f"its model {model} is damaged; remove it, and sacreBLEU downloads it again"
        return f"sacreBLEU downloads its model on first use, which needs the network, to {model}"
    if isinstance(error, AssertionError):  # another dictionary
        return " ".join(str(error).split())
    extra = {"ja-mecab": "ja", "ko-mecab": "ko"}.get(tokenize, "")
    return f"install it with pip install 'sacrebleu[{extra}]'" if extra else "see sacreBLEU"
