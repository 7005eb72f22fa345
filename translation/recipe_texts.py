"""Sections of a recipe that are about texts: languages, where the pairs come from, the vocabulary."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from coe_core.support.typed import check_ranges

_MANY = "[1, 1000000000]"
_LANGUAGE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,30}")
_TEXT_NAME = re.compile(r"[\w+-][\w.+-]{0,100}")


class Direction(NamedTuple):
    """From one language into another; written as de-en."""

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source}-{self.target}"


@dataclass(frozen=True)
class Languages:
    """What is translated into what.

    Args:
        source: one language, or several that are all translated, by the endings of their texts (de).
        target: one language, or several; with several a tag such as ``<2de>`` before every source
            sentence says which one is wanted (PAPER: Johnson et al. 2017).
        temperature: of the sampling of unequal corpora, at least 1: a direction of n pairs is drawn as if
            it had n to the power of 1 / temperature; 1 takes every pair once (PAPER: Arivazhagan et al.,
            2019).

    A sentence is never translated into its own language.
    """

    source: list[str]
    target: list[str]
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(self, {"temperature": "[1, 100]"}, "languages.")
        for side in ("source", "target"):
            names = getattr(self, side)
            for name in names:
                if not _LANGUAGE.fullmatch(name):
                    raise ValueError(
                        f"languages.{side}: {name[:40]!r} is no name of a language, such as de or pt_BR"
                    )
            if not names or len(set(names)) != len(names):
                raise ValueError(
                    f"languages.{side} must name one language or several, each once; got {names}"
                )
        if not self.directions:
            raise ValueError(
                f"languages: nothing to translate from {self.source[0]} into {self.target[0]}"
            )

    @property
    def directions(self) -> list[Direction]:
        """From every source into every target that is another language."""
        return [Direction(s, t) for s in self.source for t in self.target if s != t]

    @property
    def tagged(self) -> bool:
        """Whether a source sentence must say into which language."""
        return len(self.target) > 1

    @property
    def sides(self) -> tuple[str, str]:
        """Endings of the joined texts, and fairseq's --source-lang and --target-lang."""
        if len(self.directions) > 1:
            return "src", "tgt"
        return self.directions[0]


@dataclass(frozen=True)
class Cleaning:
    """What is left out of the training text; pairs with an empty side always are. Each is counted and said.

    Args:
        max_words: of either side.
        max_ratio: of the words of the longer side to those of the shorter.
        duplicates: all but the first of equal pairs.
        scripts: pairs with a side in another script than most of its language.
    """

    max_words: int | None = None
    max_ratio: float | None = None
    duplicates: bool = False
    scripts: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, {"max_words": _MANY, "max_ratio": "[1, 1000000]"}, "texts.cleaning.")


@dataclass(frozen=True)
class Texts:
    """Where the pairs come from.

    Args:
        corpus: files; or made of a published corpus by `coe-translation corpus`: numbers (of nothing),
            tatoeba, iwslt14.
        path: folder of the texts, ``~`` allowed; or the file or folder of the published corpus. Texts of the
            direction de-en lie in its folder ``de-en``, where there is one, else in the folder itself.
        train: name of the text to learn from: NAME stands for NAME.de and NAME.en; a name that ends in .tsv
            is a file of columns (source, tab, target), one in .tmx a translation memory, and ``-`` is columns
            on standard input. All may be packed: .gz, .xz.
        valid: that thresholds are fitted on.
        tests: that results are of.
        pairs: of numbers to train on.
        held_out: pairs of numbers and tatoeba to validate on, and as many to test on.
        lowercase: iwslt14 only, as its published baseline.
        seed: of the pairs that are drawn or held out; null: the recipe's.
        cleaning: of the training text.
    """

    corpus: Literal["files", "numbers", "tatoeba", "iwslt14"] = "files"
    path: str | None = None
    train: str = "train"
    valid: str = "valid"
    tests: list[str] = field(default_factory=lambda: ["test"])
    pairs: int = 12000
    held_out: int = 2000
    lowercase: bool = False
    seed: int | None = None
    cleaning: Cleaning = field(default_factory=Cleaning)

    def __post_init__(self) -> None:
        check_ranges(self, {"pairs": _MANY, "held_out": _MANY, "seed": "[0, 4294967295]"}, "texts.")
        names = [self.train, self.valid, *self.tests]
        for name in names:
            if not _TEXT_NAME.fullmatch(name):
                raise ValueError(
                    f"texts: {name[:60]!r} is no name of a text: letters, digits and . + - _ only"
                )
        if not self.tests or len(set(names)) != len(names):
            raise ValueError(f"texts: train, valid and tests must be different texts, got {names}")
        if self.corpus == "numbers" and self.path is not None:
            raise ValueError("texts.path: numbers are made of nothing; leave it out")
        if self.lowercase and self.corpus != "iwslt14":
            raise ValueError("texts.lowercase is for texts.corpus=iwslt14 only")

    @property
    def names(self) -> list[str]:
        """All of them, train first."""
        return [self.train, self.valid, *self.tests]


@dataclass(frozen=True)
class Vocabulary:
    """The joint SentencePiece vocabulary of all languages; `coe-translation vocabulary` says more.

    Args:
        size: number of pieces.
        kind: unigram or bpe.
        normalization: SentencePiece's rule.
        character_coverage: part of all characters that get a piece.
        byte_fallback: unknown characters become bytes, not ``<unk>``.
    """

    size: int
    kind: Literal["unigram", "bpe"] = "unigram"
    normalization: Literal["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity"] = "nmt_nfkc"
    character_coverage: float = 1.0
    byte_fallback: bool = False

    def __post_init__(self) -> None:
        ranges = {"size": "[8, 1000000]", "character_coverage": "[0.98, 1]"}
        check_ranges(self, ranges, "vocabulary.")
