"""Pairs of sentences as people have them: two files, one of columns; read, cleaned with counts, joined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from translation.corpora.letters import main_script
from translation.corpora.lines import STANDARD_INPUT, read_lines
from translation.corpora.published import Pair
from translation.corpora.text import read_parallel
from translation.corpora.tmx import read_tmx

_PACKED = ("", ".gz", ".xz")
_ONE_FILE = (".tsv", ".tmx")  # endings of files that hold both languages


def read_pairs(folder: str | Path | None, name: str, source: str, target: str) -> list[Pair]:
    """Pairs of a text, in the folder ``de-en`` or the folder itself, also packed by gzip or xz.

    Args:
        folder: of the texts; None: for standard input alone.
        name: of the text: NAME stands for NAME.de and NAME.en; a name with the ending .tsv is a file of
            columns, source and target first, one with .tmx a translation memory; ``-`` is a .tsv on
            standard input.
        source: language.
        target: language.

    Raises:
        ValueError: no such text (names what is missing), or texts that do not fit together.
    """
    if name == STANDARD_INPUT:
        return _checked(read_columns(name), "standard input", source, target)
    folder = Path(folder or "").expanduser()
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: give the folder of the texts, texts.path=FOLDER")
    places = [folder / f"{source}-{target}", folder]
    plain = name.removesuffix(".gz").removesuffix(".xz")
    if plain.endswith(_ONE_FILE):
        path = _find(places, [name], f"text {name}")
        pairs = read_tmx(path, source, target) if plain.endswith(".tmx") else read_columns(path)
        return _checked(pairs, str(path), source, target)
    paths = [
        _find(places, [f"{name}.{language}{end}" for end in _PACKED], f"language {language}")
        for language in (source, target)
    ]
    texts = read_parallel(paths, read_lines)
    return _checked(list(zip(*texts, strict=True)), f"{paths[0]}, {paths[1]}", source, target)


def read_columns(path: str | Path) -> list[Pair]:
    """Pairs of a file of columns separated by tabs: source, target, and others that are not read.

    Raises:
        ValueError: as `read_lines`, or a line with fewer than two columns.
    """
    pairs = []
    for number, line in enumerate(read_lines(path), start=1):
        columns = line.split("\t")
        if len(columns) < 2:
            raise ValueError(f"{path}:{number}: not source, tab, target: {line[:60]!r}")
        pairs.append((columns[0].strip(), columns[1].strip()))
    return pairs


def _checked(pairs: list[Pair], where: str, source: str, target: str) -> list[Pair]:
    for side, language in enumerate((source, target)):
        if not any(pair[side].strip() for pair in pairs):
            raise ValueError(
                f"language {language} has no text: all {len(pairs)} lines of {where} are empty"
            )
    return pairs


def _find(places: Sequence[Path], names: Sequence[str], what: str) -> Path:
    for place in places:
        for name in names:
            if (place / name).is_file():
                return place / name
    folder = places[-1]
    present = sorted({path.name for path in folder.iterdir() if path.is_file()})[:8]
    raise ValueError(
        f"{what} has no text: {folder / names[0]} is missing; in {folder} there is "
        f"{', '.join(present) or 'nothing'}"
    )


class Cleaned(NamedTuple):
    """Pairs that are kept, and how many were left out, by reason."""

    pairs: list[Pair]
    left_out: dict[str, int]


def clean(
    pairs: Sequence[Pair],
    *,
    max_words: int | None = None,
    max_ratio: float | None = None,
    duplicates: bool = False,
    scripts: Sequence[str | None] | None = None,
) -> Cleaned:
    """Leave out what teaches nothing, or the wrong thing.

    Args:
        pairs: source and target.
        max_words: of either side; null: any number.
        max_ratio: of the words of the longer side to those of the shorter; null: any.
        duplicates: leave out all but the first of equal pairs.
        scripts: of source and target, see `main_script`: pairs with a side in another are left out; None: of
            any script.

    Example:
        >>> pairs = [("ein Haus", "a house"), ("", "c"), ("ein Haus", "a house"), ("Haus", "a very big one")]
        >>> clean(pairs, max_ratio=3, duplicates=True)
        Cleaned(pairs=[('ein Haus', 'a house')], left_out={'empty': 1, 'length ratio': 1, 'repeated': 1})
    """
    left_out: dict[str, int] = {}
    kept: dict[Pair, None] = {}
    rest: list[Pair] = []
    for pair in pairs:
        words = sorted(len(side.split()) for side in pair)
        if words[0] == 0:
            reason = "empty"
        elif max_words is not None and words[1] > max_words:
            reason = "too long"
        elif max_ratio is not None and words[1] > max_ratio * words[0]:
            reason = "length ratio"
        elif scripts is not None and any(
            script is not None and main_script([side]) not in (script, None)
            for side, script in zip(pair, scripts, strict=True)
        ):
            reason = "other script"
        elif duplicates and pair in kept:
            reason = "repeated"
        else:
            kept[pair] = None
            rest.append(pair)
            continue
        left_out[reason] = left_out.get(reason, 0) + 1
    return Cleaned(rest, dict(sorted(left_out.items())))


def sampled(sizes: Sequence[int], temperature: float) -> list[int]:
    """How many pairs of each corpus one epoch takes, so that small ones are drawn more often.

    A corpus of n pairs has the share n^(1/temperature) of the epoch; the largest is taken whole, the
    others are repeated up to their share.

    Args:
        sizes: pairs of each corpus, above 0.
        temperature: at least 1; 1: every pair once.

    Example:
        >>> sampled([10000, 100], 1), sampled([10000, 100], 2), sampled([10000, 100], 100)
        ([10000, 100], [10000, 1000], [10000, 9550])
    """
    largest = max(sizes)
    return [round(largest * (size / largest) ** (1 / temperature)) for size in sizes]


def repeated(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """The pairs over and over, until there are so many.

    Example:
        >>> repeated([("a", "b"), ("c", "d")], 3)
        [('a', 'b'), ('c', 'd'), ('a', 'b')]
    """
    whole, rest = divmod(count, len(pairs))
    return [*list(pairs) * whole, *pairs[:rest]]
