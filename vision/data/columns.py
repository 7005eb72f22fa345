"""The columns of a table of labels: what a recipe may name, and what is looked for where it does not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Names that columns usually have, the likeliest first; compared in small letters, with _ for spaces.
FILE_COLUMNS = (
    *("file", "path", "filename", "file_name", "filepath", "file_path", "image", "image_path"),
    *("image_file", "image_name", "img", "img_path", "photo", "picture", "image_id"),
)
LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "label_name", "category", "target", "y"),
    *("species", "diagnosis"),
)
SPLIT_COLUMNS = ("split", "subset", "set", "partition")
GROUP_COLUMNS = (
    *("group", "group_id", "patient", "patient_id", "subject", "subject_id", "track", "track_id"),
    *("sequence", "sequence_id"),
)
OFF = "off"  # of data.group: parts are cut image by image, whatever columns there are


@dataclass(frozen=True)
class Columns:
    """The ``data.columns:`` of a recipe: names in the table's first line.

    Args:
        file: of the images, relative to the table or to `data.images`; null: a column with a usual
            name, such as file, path or image.
        label: of the classes; null: such as label, class or category.
        split: which says train, validation or test; null: split, subset or set; without one a part of
            the rows is held out.
    """

    file: str | None = None
    label: str | None = None
    split: str | None = None


def usual_column(columns: Iterable[str], usual: Sequence[str]) -> str | None:
    """The column with the likeliest of some usual names; None where no column has one.

    Example:
        >>> usual_column(["Label", "Image Path", "file name"], FILE_COLUMNS)
        'file name'
    """
    plain = {re.sub(r"[\s-]+", "_", column.lower()): column for column in columns}
    return next((plain[name] for name in usual if name in plain), None)
