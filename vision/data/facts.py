"""What is known of each data set before it is read: one record for recipes, dry runs and `inspect`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSet:
    """Facts of a data set.

    Args:
        num_classes: None: told by the data themselves.
        num_train: training images, those that are held out included; None: not known without the data.
        photographs: of any shape, so that they are cropped where a recipe does not say otherwise.
        in_files: it lies in a folder that `data.path` names.
        in_shards: it may lie in tar files, and `data.path` be a pattern of their names.
    """

    num_classes: int | None = None
    num_train: int | None = None
    photographs: bool = False
    in_files: bool = True
    in_shards: bool = False


DATA_SETS = {
    "digits": DataSet(10, in_files=False),
    "fashion_mnist": DataSet(10, 60_000),
    "cifar10": DataSet(10, 50_000),
    "cifar100": DataSet(100, 50_000),
    "imagenet": DataSet(1000, 1_281_167, photographs=True, in_shards=True),
    "folder": DataSet(photographs=True),
    "table": DataSet(photographs=True),
    "webdataset": DataSet(photographs=True, in_shards=True),
}


def classes_before_reading(name: str) -> list[str]:
    """Stand-ins for the classes of a data set that is not read: numbers, ten where nobody knows better.

    Example:
        >>> len(classes_before_reading("imagenet")), classes_before_reading("folder")[-1]
        (1000, '9')
    """
    facts = DATA_SETS.get(name)
    return [str(label) for label in range(facts.num_classes or 10 if facts else 10)]
