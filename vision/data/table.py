"""Labels from a table: which columns are meant, what is wrong with the rows, and the splits they make."""

from __future__ import annotations

import functools
import os
import re
import stat
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from typing import NamedTuple

import numpy as np
import torch

from coe_core.support.command import nearest
from vision.data.columns import (
    FILE_COLUMNS,
    GROUP_COLUMNS,
    LABEL_COLUMNS,
    OFF,
    SPLIT_COLUMNS,
    Columns,
    usual_column,
)
from vision.data.files import printable
from vision.data.samples import Samples, Source, numbered, tell_absent
from vision.data.table_file import TextTable, is_table, read_columns

SPLIT_NAMES = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "tst"),
}


class LabelTable(NamedTuple):
    """The rows of a table, by column."""

    name: str  # of the table, for messages
    files: list[str]  # where they should lie
    labels: list[str]
    splits: list[str] | None  # None: there is no such column
    groups: list[str] | None  # an empty text: the image is a group of its own
    group_column: str | None
    said: str  # which columns were taken


def is_table_of(name: str, path: str | None) -> bool:
    """Whether a recipe's data are a table: by their name, or a folder whose path is that of a table."""
    if name != "folder" or path is None:
        return name == "table" and path is not None
    return is_table(path) and not os.path.isdir(os.path.expanduser(path))


def read_labels(
    path: str | PathLike,
    columns: Columns | None = None,
    group: str | None = None,
    images: str | PathLike | None = None,
    group_key: str = "data.group",
) -> LabelTable:
    """Read a table and find its columns.

    Args:
        path: of a .csv, .tsv or .parquet file.
        columns: their names; None: all by their usual names.
        group: the column of groups; None: one with a usual name, such as track or patient_id; "off": none.
        images: folder that the names of files are relative to; None: the table's.
        group_key: of the recipe, that names the column of groups.

    Raises:
        FileNotFoundError: no such table, or no such folder.
        ValueError: see `read_columns`; or a column that is not there (names those that are).
    """
    path = os.path.expanduser(path)
    table = read_columns(path)
    named = columns or Columns()
    file = _column(
        table, named.file, "data.columns.file", FILE_COLUMNS, needed="names of the images"
    )
    label = _column(table, named.label, "data.columns.label", LABEL_COLUMNS, needed="classes")
    split = _column(table, named.split, "data.columns.split", SPLIT_COLUMNS)
    grouped = None if group == OFF else _column(table, group, group_key, GROUP_COLUMNS)
    taken = {"file": file, "label": label, "split": split, "group": grouped}
    assert file is not None
    assert label is not None
    root = os.path.dirname(os.path.abspath(path))
    if images is not None:
        root = os.path.abspath(os.path.expanduser(images))
        if not os.path.isdir(root):
            raise FileNotFoundError(f"data.images: there is no folder {printable(root)}")
    said = ", ".join(f"{what} from {printable(name)}" for what, name in taken.items() if name)
    return LabelTable(
        table.name,
        [
            os.path.normpath(os.path.join(root, name)) if name else ""
            for name in table.columns[file]
        ],
        _plain_numbers(table.columns[label]),
        None if split is None else table.columns[split],
        None if grouped is None else table.columns[grouped],
        grouped,
        f"{said}{'; ' * bool(table.note)}{table.note}",
    )


def _column(
    table: TextTable, name: str | None, key: str, usual: Sequence[str], needed: str = ""
) -> str | None:
    """The column of that name, or the likeliest of a usual one; None where none is needed."""
    if name is not None:
        if name in table.columns:
            return name
        raise ValueError(
            f"{key}: {table.name} has no column {name!r}{nearest(name, table.columns)}; it has "
            f"{', '.join(map(printable, table.columns))}"
        )
    found = usual_column(table.columns, usual)
    if found is None and needed:
        raise ValueError(
            f"{table.name} has no column for the {needed} under a usual name ({', '.join(usual[:6])}, ...); "
            f"name it in {key}; it has {', '.join(map(printable, table.columns))}"
        )
    return found


def _plain_numbers(labels: list[str]) -> list[str]:
    """Whole numbers that a table's writer gave a point, as in 3.0, without it, where all are numbers."""
    if all(re.fullmatch(r"-?\d+(\.0*)?", label) for label in labels):
        return [label.partition(".")[0] for label in labels]
    return labels


# What is wrong with the rows


def table_problems(table: LabelTable) -> list[str]:
    """A line about everything that makes a table's rows unusable; nothing where they can be learned from."""
    problems = [*_empty_cells(table), *_odd_labels(table), *_odd_splits(table)]
    if not problems:
        problems = [*_missing_files(table), *_conflicts(table), *_split_classes(table)]
        problems += _groups_in_two_splits(table)
    return problems


def _empty_cells(table: LabelTable) -> list[str]:
    problems = []
    columns = {"file": table.files, "label": table.labels, "split": table.splits}
    for what, cells in columns.items():
        empty = [row for row, cell in enumerate(cells or (), start=1) if not cell]
        if empty:
            problems.append(
                f"{table.name}: {len(empty)} of {len(table.files)} rows have no {what}, the first is row "
                f"{empty[0]}; fill them in or remove them"
            )
    return problems


def _odd_labels(table: LabelTable) -> list[str]:
    names = Counter(table.labels)
    names.pop("", None)
    odd = [name for name in names if not name.isprintable()]
    if odd:
        return [
            f"{table.name}: {len(odd)} labels cannot be printed: {', '.join(map(ascii, odd[:3]))}; "
            "rename them"
        ]
    numbers = [name for name in names if re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", name)]
    texts = [name for name in names if name not in set(numbers)]
    if numbers and texts:
        counts = [sum(names[name] for name in kind) for kind in (numbers, texts)]
        return [
            f"{table.name}: labels mix numbers ({counts[0]} rows, such as {numbers[0]}) and texts "
            f"({counts[1]} rows, such as {texts[0]!r}); name all classes in one way"
        ]
    broken = [name for name in numbers if not re.fullmatch(r"[-+]?\d+", name)]
    if broken:
        return [
            f"{table.name}: {sum(names[name] for name in broken)} labels are no whole numbers, such as "
            f"{broken[0]}, so they name no classes; name another column in data.columns.label"
        ]
    return []


def _odd_splits(table: LabelTable) -> list[str]:
    unknown = {name for name in table.splits or () if name and _split_name(name) is None}
    if not unknown:
        return []
    known = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
    return [
        f"{table.name}: {len(unknown)} names of splits are unknown: "
        f"{', '.join(repr(name) for name in sorted(unknown)[:5])}; known: {known}"
    ]


@functools.cache
def _split_name(text: str) -> str | None:
    return next((split for split, names in SPLIT_NAMES.items() if text.lower() in names), None)


def _missing_files(table: LabelTable) -> list[str]:
    missing = [file for file in dict.fromkeys(table.files) if not _is_file(file)]
    if not missing:
        return []
    listed = ", ".join(printable(file) for file in missing[:3])
    advice = "put them there, remove their rows, or name the folder that holds them in data.images"
    if all(not os.path.splitext(file)[1] for file in missing):
        advice = "the names have no endings: write them with theirs"
    if any(re.search(r"/(https?|s3|gs):/", file) for file in missing[:3]):
        advice = "files are read from folders, not fetched: fetch them first"
    return [
        f"{table.name}: {len(missing)} of {len(set(table.files))} files are missing: "
        f"{listed}{', ...' * (len(missing) > 3)}; {advice}"
    ]


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # a NUL, too long
        return False


def _conflicts(table: LabelTable) -> list[str]:
    """Files that stand in two rows which contradict each other."""
    problems = []
    splits = [_split_name(split) for split in table.splits] if table.splits else None
    for what, values in (("labels", table.labels), ("splits", splits)):
        first: dict[str, object] = {}
        pairs = [
            (file, first[file], value)
            for file, value in zip(table.files, values or (), strict=False)
            if first.setdefault(file, value) != value
        ]
        if pairs:
            file, ours, theirs = pairs[0]
            problems.append(
                f"{table.name}: {len(pairs)} rows name a file again with other {what}, the first "
                f"{printable(file)} ({ours} and {theirs}); keep one of them"
            )
    return problems


def _split_classes(table: LabelTable) -> list[str]:
    by_split = _classes_by_split(table)
    if "train" not in by_split:
        return [f"{table.name}: no row is of the split train; there is nothing to learn from"]
    problems = []
    for split, counts in by_split.items():
        if len(counts) == 1:
            problems.append(
                f"{table.name}: all {counts.total()} rows of {split} are of one class, "
                f"{next(iter(counts))!r}; at least two are needed"
            )
        unknown = sorted(counts.keys() - by_split["train"].keys())
        if unknown:
            problems.append(
                f"{table.name}: {len(unknown)} classes of {split} have no rows in train: "
                f"{', '.join(unknown[:10])}; nothing can be learned of them: add some, or remove them"
            )
    return problems


def _classes_by_split(table: LabelTable) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for row, label in enumerate(table.labels):
        split = _split_name(table.splits[row]) if table.splits else "train"
        counts.setdefault(str(split), Counter())[label] += 1
    return counts


def _groups_in_two_splits(table: LabelTable) -> list[str]:
    if table.groups is None or table.splits is None:
        return []
    where: dict[str, set[str | None]] = {}
    for group, split in zip(table.groups, table.splits, strict=True):
        if not group:
            continue
        where.setdefault(group, set()).add(_split_name(split))
    torn = [group for group, splits in where.items() if len(splits) > 1]
    if not torn:
        return []
    splits = ", ".join(sorted(map(str, where[torn[0]])))
    return [
        f"{table.name}: {len(torn)} of {len(where)} groups of {table.group_column} lie in two splits, the "
        f"first {printable(torn[0])} in {splits}; move each whole into one, or set data.group=off"
    ]


# What the rows are


def table_source(table: LabelTable) -> Source:
    """The splits of a table whose rows can be learned from; which columns they come from is said.

    Rows that name a file again count once, with a warning.

    Raises:
        ValueError: the first of its problems, and how many more there are.
    """
    problems = table_problems(table)
    if problems:
        more = len(problems) - 1
        rest = f" (and {more} more: coe-vision check {table.name})" if more else ""
        raise ValueError(f"{problems[0]}{rest}")
    rows = np.array(
        list({file: row for row, file in reversed(list(enumerate(table.files)))}.values())
    )
    rows.sort()
    if len(rows) < len(table.files):
        warnings.warn(
            f"{table.name}: {len(table.files) - len(rows)} rows name a file again, with the same label; each "
            "file counts once",
            stacklevel=2,
        )
    classes = _class_names(table.labels)
    numbers = {name: number for number, name in enumerate(classes)}
    targets = torch.tensor([numbers[label] for label in table.labels])
    codes = None
    if table.groups is not None:
        codes = numbered(group or f"\n{row}" for row, group in enumerate(table.groups))
    splits: dict[str, Samples] = {}
    for split in SPLIT_NAMES:
        if table.splits is None:
            chosen = rows if split == "train" else rows[:0]
        else:
            chosen = rows[[_split_name(table.splits[row]) == split for row in rows]]
        if len(chosen):
            files = [table.files[row] for row in chosen]
            groups = None if codes is None else codes[chosen]
            splits[split] = Samples(targets[chosen], paths=files, groups=groups)
    if os.environ.get("RANK", "0") == "0":
        counts = ", ".join(f"{split} {len(s.targets):,}" for split, s in splits.items())
        print(f"{table.name}: {table.said}; {counts} images", file=sys.stderr)
    for split in splits.keys() - {"train"}:
        tell_absent(table.name, split, splits[split].targets, classes)
    return Source(
        classes,
        splits["train"],
        splits.get("validation"),
        splits.get("test"),
        group=table.group_column,
    )


def _class_names(labels: list[str]) -> list[str]:
    """In order: of numbers by size, of texts by their letters."""
    names = set(labels)
    if all(re.fullmatch(r"[-+]?\d+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
