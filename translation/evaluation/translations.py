"""What every network made of every sentence: all that calibration, curves and tables are computed from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from coe_core.support.files import as_number, read_json, write_json

DELEGATOR, ENSEMBLE = "delegator", "ensemble"
DELEGATOR_ALONE, EXPERT_ALONE = "delegator-alone", "expert-alone"
_COSTS = ("macs", "seconds")


@dataclass
class OfNetwork:
    """Translations of one network (or of one ensemble), a value for each sentence."""

    text: list[str] = field(default_factory=list)  # best hypothesis, detokenised
    confidence: list[float] = field(default_factory=list)  # of the best hypothesis
    macs: list[float] = field(default_factory=list)  # of its beam search, alone
    seconds: list[float] = field(default_factory=list)  # its share of its batch's


@dataclass
class Selection:
    """What the delegator's encoder and its selection head say and spend, a value for each sentence.

    Of that the experts are spared what their encoders share with it, where they share layers.
    """

    logits: list[list[float]] = field(default_factory=list)  # [n, k]
    macs: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # its share of its batch's
    shared_macs: list[float] = field(default_factory=list)  # empty: nothing is shared
    shared_seconds: list[float] = field(default_factory=list)


@dataclass
class Translations:
    """Translations of one test set by all networks of a team and by its controls."""

    provenance: dict[str, Any]  # checkpoint, data, options of generation, versions, date
    source: list[str]
    reference: list[str]
    selection: Selection
    networks: dict[
        str, OfNetwork
    ]  # "delegator", "expert-J", "ensemble", and controls by their names
    directions: list[str] = field(
        default_factory=list
    )  # of each sentence, such as de-en, where several

    def __len__(self) -> int:
        return len(self.source)

    @property
    def num_experts(self) -> int:
        return sum(name in self.networks for name in self._experts())

    def _experts(self) -> list[str]:
        return [f"expert-{j}" for j in range(len(self.selection.logits[0]))]

    def experts(self) -> list[OfNetwork]:
        """The team's experts, in their order."""
        return [self.networks[name] for name in self._experts()]

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all.

        Raises:
            ValueError: parts that do not fit together, or numbers that are none.
        """
        self.check(str(path))
        write_json(path, asdict(self), indent=None)

    @classmethod
    def load(cls, path: str | Path) -> Translations:
        """Inverse of `save`.

        Raises:
            ValueError: not such a file, or one whose parts do not fit together.
        """
        if not Path(path).is_file():
            what = "not a regular file" if Path(path).exists() else "no such file"
            raise ValueError(f"{path}: {what}; coe-translation decode writes it")
        values = read_json(path)
        try:
            networks = {
                name: OfNetwork(**_columns(network, OfNetwork, name))
                for name, network in values.pop("networks").items()
            }
            selection = Selection(**_columns(values.pop("selection"), Selection, "the selection"))
            translations = cls(**values, selection=selection, networks=networks)
            for name in ("source", "reference"):
                _check_texts(getattr(translations, name), name)
            _check_texts(translations.directions, "directions")
            if not isinstance(translations.provenance, dict):
                raise ValueError(f"provenance is {translations.provenance!r:.60}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: not what coe-translation decode writes ({error!r})"
            ) from error
        translations.check(str(path))
        return translations

    def check(self, name: str) -> None:
        """Raise ValueError unless there is one of everything for each sentence."""
        n = len(self.source)
        if n == 0:
            raise ValueError(f"{name}: no sentences")
        columns: dict[str, list] = {"references": self.reference}
        every: dict[str, Selection | OfNetwork] = {"selection": self.selection, **self.networks}
        for network, values in every.items():
            columns |= {
                f"{what} of {network}": column
                for what, column in vars(values).items()
                if column or not what.startswith("shared_")
            }
        if self.directions:
            columns["directions"] = self.directions
        for what, column in columns.items():
            if len(column) != n:
                raise ValueError(f"{name}: {len(column)} {what} for {n} sentences")
        for needed in (DELEGATOR, *self._experts()):
            if needed not in self.networks:
                raise ValueError(f"{name}: no translations by {needed}")
        for network, values in every.items():
            spent = [column for name, column in vars(values).items() if name.endswith(_COSTS)]
            if not all(math.isfinite(value) for column in spent for value in column):
                raise ValueError(f"{name}: costs of {network} that are not finite")
        if len({len(row) for row in self.selection.logits}) > 1:
            raise ValueError(f"{name}: selection logits of different numbers of experts")
        numbers = {"selection logits": [x for row in self.selection.logits for x in row]}
        numbers |= {f"confidence of {k}": values.confidence for k, values in self.networks.items()}
        for what, column in numbers.items():
            undefined = sum(map(math.isnan, column))
            if undefined:
                raise ValueError(
                    f"{name}: {undefined} of {len(column)} values of {what} are no numbers (NaN); the "
                    "network has diverged: train it again with a lower learning rate"
                )


def _columns(values: Any, record: type, name: str) -> dict[str, list]:
    """Columns of one network, each value of the type it should have."""
    columns = {}
    for entry in fields(record):
        if entry.name.startswith("shared_") and entry.name not in values:
            continue  # a file of an older version
        column = values[entry.name]
        if not isinstance(column, list):
            raise ValueError(f"{entry.name} of {name} is {column!r:.60}, not a list")
        if entry.name == "text":
            _check_texts(column, f"text of {name}")
            columns["text"] = column
        elif entry.name == "logits":
            columns["logits"] = [[as_number(x, f"logits of {name}") for x in row] for row in column]
        else:
            columns[entry.name] = [as_number(x, f"{entry.name} of {name}") for x in column]
    unknown = set(values) - set(columns)
    if unknown:
        raise ValueError(f"unknown columns of {name}: {sorted(unknown)}")
    return columns


def _check_texts(column: Any, name: str) -> None:
    if not isinstance(column, list) or not all(isinstance(text, str) for text in column):
        raise ValueError(f"{name} is not a list of texts")
