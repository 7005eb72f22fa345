"""Quality of translations: sacreBLEU with its signature, chrF, TER, tokenised BLEU, paired bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest


class Score(NamedTuple):
    """One metric of one system."""

    metric: str
    value: float
    signature: str
    # Against the first system, from a paired bootstrap; None for the first, or without one.
    p_value: float | None = None
    mean: float | None = None
    half_width: float | None = None  # of the 95% confidence interval


def score(
    system: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str] = ("BLEU",)
) -> list[Score]:
    """Corpus scores of one system, all by sacreBLEU.

    Args:
        system: one translation a sentence, detokenised.
        references: one or several reference texts.
        metrics: of BLEU, chrF, TER, and "tokenised BLEU": 4-gram BLEU over words as they are separated by
            spaces in the texts, which is what fairseq-score prints.

    Raises:
        ValueError: texts of different lengths, or an unknown metric.

    Example:
        >>> round(score(["the cat sat on the mat"], [["the cat sat on the mat"]])[0].value)
        100
    """
    for number, reference in enumerate(references):
        if len(reference) != len(system):
            raise ValueError(
                f"line counts differ: the system has {len(system)} translations, reference {number} has "
                f"{len(reference)} lines"
            )
    found = []
    for name in metrics:
        metric = _metric(name)
        result = metric.corpus_score(list(system), [list(text) for text in references])
        found.append(Score(name, result.score, str(metric.get_signature())))
    return found


def compare(
    systems: dict[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] = ("BLEU", "chrF"),
    *,
    num_resamples: int = 1000,
) -> dict[str, list[Score]]:
    """Scores of several systems; every one but the first is tested against the first.

    Paired bootstrap (Koehn 2004) as sacreBLEU has it, seeded, so it gives the same every time.

    Args:
        systems: translations by name; the first is the baseline.
        references: one or several reference texts.
        metrics: as in `score`.
        num_resamples: of the bootstrap.

    Raises:
        ValueError: fewer than two systems, or as `score`.
    """
    if len(systems) < 2:
        raise ValueError(f"a comparison needs two systems or more, got {len(systems)}")
    scores = {name: score(text, references, metrics) for name, text in systems.items()}
    named, texts = (
        [(name, list(text)) for name, text in systems.items()],
        list(map(list, references)),
    )
    compared: dict[str, list[Score]] = {name: [] for name in systems}
    for place, metric in enumerate(metrics):  # one by one: two kinds of BLEU would share a name
        test = PairedTest(
            named, {metric: _metric(metric)}, texts, test_type="bs", n_samples=num_resamples
        )
        _, columns = test()
        (results,) = (column for title, column in columns.items() if title != "System")
        for name, result in zip(systems, results, strict=True):
            own = scores[name][place]
            compared[name].append(
                own._replace(p_value=result.p_value, mean=result.mean, half_width=result.ci)
            )
    return compared


def _metric(name: str):
    known = {
        "BLEU": BLEU,
        "chrF": CHRF,
        "TER": TER,
        "tokenised BLEU": lambda: BLEU(tokenize="none", smooth_method="none", force=True),
    }
    if name not in known:
        raise ValueError(f"unknown metric {name!r}; known: {', '.join(known)}")
    return known[name]()
