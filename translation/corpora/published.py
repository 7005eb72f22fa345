"""Published corpora as people download them -> parallel text for the recipes: Tatoeba, IWSLT'14."""

from __future__ import annotations

import itertools
import random
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from coe_core.support.archives import check_archive, is_zip
from coe_core.support.files import write_text
from translation.corpora.lines import read_lines, split_lines
from translation.corpora.text import read_parallel

Pair = tuple[str, str]
_MOST = 10  # pairs of a group that may be held out; larger groups are trained on


def tatoeba_pairs(path: str | Path) -> list[Pair]:
    """German-English pairs of the Tatoeba project as manythings.org packs them.

    Args:
        path: ``deu-eng.zip``, the ``deu.txt`` in it, or a folder that holds one of them.

    Raises:
        ValueError: no such file, or a line that is not English, tab, German.
    """
    path = Path(path)
    if path.is_dir():
        inside = [path / name for name in ("deu.txt", "deu-eng.zip") if (path / name).is_file()]
        if not inside:
            raise ValueError(f"{path}: neither deu.txt nor deu-eng.zip is in this folder")
        path = inside[0]
    if path.is_file() and is_zip(path):
        check_archive(path)
        with zipfile.ZipFile(path) as archive:
            if "deu.txt" not in archive.namelist():
                raise ValueError(f"{path}: there is no deu.txt in this archive")
            lines = split_lines(archive.read("deu.txt"), f"{path}/deu.txt")
    else:
        lines = read_lines(path)
    pairs = []
    for number, line in enumerate(lines, start=1):
        english, tab, german = line.partition("\t")
        german = german.partition("\t")[0]  # newer files name the authors in a third column
        if not (tab and english.strip() and german.strip()):
            raise ValueError(f"{path}:{number}: not English, tab, German: {line[:60]!r}")
        pairs.append((german.strip(), english.strip()))
    return pairs


def split_apart(
    pairs: Sequence[Pair], held_out: dict[str, int], seed: int
) -> dict[str, list[Pair]]:
    """Split pairs so that no sentence, of either language, is in two splits.

    Pairs that share a sentence (but for case and punctuation), directly or by way of others, are a group,
    and a group is in one split only. Of a group that is held out one pair is kept, the others are left out.
    OURS: corpora of short sentences have many translations of each; a random split of their lines would
    test on sentences of the training.

    Args:
        pairs: source and target.
        held_out: pairs wanted of every split but "train", such as {"valid": 2000, "test": 2000}.
        seed: the same seed gives the same splits.

    Raises:
        ValueError: not enough groups for the splits wanted.

    Example:
        >>> pairs = [("Hallo!", "Hi."), ("Hallo.", "Hello."), ("Lauf!", "Run!"), ("Ja.", "Yes.")]
        >>> splits = split_apart(pairs, {"test": 1}, seed=0)
        >>> {name: len(some) for name, some in splits.items()}
        {'train': 3, 'test': 1}
    """
    import numpy

    group_of = _groups(pairs)
    sizes = numpy.bincount(group_of)
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    wanted = sum(held_out.values())
    groups = list(dict.fromkeys(group_of[row] for row in order if sizes[group_of[row]] <= _MOST))
    if len(groups) < wanted or wanted >= len(sizes):
        raise ValueError(
            f"{wanted} pairs are to be held out, but the {len(pairs)} pairs have only {len(groups)} "
            f"groups of at most {_MOST} that share no sentence with others (one must be left to train on); "
            "hold out fewer"
        )
    names = (name for name, size in held_out.items() for _ in range(size))
    split_of = dict(zip(groups, names, strict=False))
    splits: dict[str, list[Pair]] = {"train": [], **{name: [] for name in held_out}}
    taken = set()
    for row in order:
        group = group_of[row]
        if group not in split_of:
            splits["train"].append(pairs[row])
        elif group not in taken:
            taken.add(group)
            splits[split_of[group]].append(pairs[row])
    splits["train"] = list(dict.fromkeys(splits["train"]))
    return splits


def _groups(pairs: Sequence[Pair]) -> Any:
    """Number of the group of each pair: pairs that share a sentence, directly or by way of others."""
    import numpy
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers: dict[tuple[int, str], int] = {}
    ends = numpy.array(
        [
            [numbers.setdefault((side, _key(text)), len(numbers)) for side, text in enumerate(pair)]
            for pair in pairs
        ]
    ).reshape(-1, 2)
    links = coo_array((numpy.ones(len(pairs)), ends.T), shape=(len(numbers),) * 2)
    return connected_components(links, directed=False)[1][ends[:, 0]]


def _key(sentence: str) -> str:
    """What makes two sentences equal: their words."""
    return " ".join(re.findall(r"\w+", sentence.casefold())) or sentence


# As fairseq's prepare-iwslt14.sh: every 23rd pair of the training text is held out.
_EVERY = 23
_TESTS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
_TITLE = re.compile(r"</?(title|description)>")
_OTHER_TAG = re.compile(r"</?(doc|url|keywords|talkid|speaker|reviewer|translator)\b")
_SEGMENT = re.compile(r"<seg id=\"[^\"]*\">\s*(.*?)\s*</seg>")


def iwslt14_splits(folder: str | Path, lowercase: bool = False) -> dict[str, list[Pair]]:
    """Train, valid and test of IWSLT'14 German-English, cut as fairseq's ``prepare-iwslt14.sh`` cuts them.

    The text stays as it is (no tokeniser); pairs of the training text with more than 175 words on a side,
    or more than 1.5 times as many on one side as on the other, are left out, as there.

    Args:
        folder: ``de-en`` of the archive ``de-en.tgz``.
        lowercase: as the published baseline is trained and scored.

    Raises:
        ValueError: files that are missing, or whose lines do not fit together.
    """
    folder = Path(folder)
    train = [folder / f"train.tags.de-en.{language}" for language in ("de", "en")]
    tests = [
        [folder / f"IWSLT14.{name}.de-en.{language}.xml" for language in ("de", "en")]
        for name in _TESTS
    ]
    missing = [path.name for path in (*train, *itertools.chain(*tests)) if not path.is_file()]
    if missing:
        raise ValueError(
            f"{folder}: {', '.join(missing)} missing; give the folder de-en of IWSLT'14's de-en.tgz"
        )
    texts = [_spoken(text) for text in read_parallel(train, read_lines)]
    if len(texts[0]) != len(texts[1]):
        raise ValueError(
            f"{folder}: {len(texts[0])} German and {len(texts[1])} English sentences remain without tags"
        )
    spoken = [pair for pair in zip(*texts, strict=True) if _usual(pair)]
    splits = {
        "train": [pair for place, pair in enumerate(spoken) if place % _EVERY],
        "valid": spoken[::_EVERY],
        "test": [pair for paths in tests for pair in _segments(paths)],
    }
    if lowercase:
        splits = {
            name: [(a.lower(), b.lower()) for a, b in pairs] for name, pairs in splits.items()
        }
    return splits


def _spoken(lines: list[str]) -> list[str]:
    """Sentences of a training text, its titles and descriptions too, without the lines of other tags."""
    stripped = (_TITLE.sub("", line).strip() for line in lines)
    return [line for line in stripped if not _OTHER_TAG.match(line)]


def _usual(pair: Pair) -> bool:
    short, long = sorted(len(text.split()) for text in pair)
    return short > 0 and long <= 175 and long <= 1.5 * short


def _segments(paths: Sequence[Path]) -> Iterator[Pair]:
    texts = [_SEGMENT.findall("\n".join(read_lines(path))) for path in paths]
    if len(texts[0]) != len(texts[1]):
        raise ValueError(
            f"{paths[0].name} has {len(texts[0])} segments, {paths[1].name} has {len(texts[1])}"
        )
    return zip(*texts, strict=True)


def write_splits(
    splits: dict[str, list[Pair]], folder: str | Path, languages: Sequence[str]
) -> None:
    """Write NAME.LANGUAGE, one sentence a line, each file whole or not at all.

    A carriage return within a sentence becomes a space: fairseq would end the line at it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in splits.items():
        for side, language in enumerate(languages):
            lines = (pair[side].replace("\r", " ") for pair in pairs)
            write_text(folder / f"{name}.{language}", "".join(f"{line}\n" for line in lines))
