"""What every network made of every sentence: all that calibration, curves and tables are computed from."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

DELEGATOR, ENSEMBLE = "delegator", "ensemble"
DELEGATOR_ALONE, EXPERT_ALONE = "delegator-alone", "expert-alone"


@dataclass
class OfNetwork:
    """Translations of one network (or of one ensemble), a value for each sentence."""

    text: list[str] = field(default_factory=list)  # best hypothesis, detokenised
    confidence: list[float] = field(default_factory=list)  # of the best hypothesis
    macs: list[float] = field(default_factory=list)  # of its beam search, alone
    seconds: list[float] = field(default_factory=list)  # its share of its batch's


@dataclass
class Selection:
    """What the delegator's encoder and its selection head say and spend, a value for each sentence."""

    logits: list[list[float]] = field(default_factory=list)  # [n, k]
    macs: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # its share of its batch's


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
        """Write as JSON, whole or not at all."""
        part = Path(f"{path}.part")
        with open(part, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, ensure_ascii=False)
        os.replace(part, path)

    @classmethod
    def load(cls, path: str | Path) -> Translations:
        """Inverse of `save`.

        Raises:
            ValueError: not such a file, or one whose parts do not fit together.
        """
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file; coe-translation decode writes it")
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            networks = {name: OfNetwork(**one) for name, one in fields.pop("networks").items()}
            selection = Selection(**fields.pop("selection"))
            found = cls(**fields, selection=selection, networks=networks)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: not what coe-translation decode writes ({error!r})"
            ) from error
        found.check(str(path))
        return found

    def check(self, name: str) -> None:
        """Raise ValueError unless there is one of everything for each sentence."""
        n = len(self.source)
        if n == 0:
            raise ValueError(f"{name}: no sentences")
        columns: dict[str, list] = {"references": self.reference}
        for network, values in {"selection": self.selection, **self.networks}.items():
            columns |= {f"{what} of {network}": column for what, column in vars(values).items()}
        for what, column in columns.items():
            if len(column) != n:
                raise ValueError(f"{name}: {len(column)} {what} for {n} sentences")
        for needed in (DELEGATOR, *self._experts()):
            if needed not in self.networks:
                raise ValueError(f"{name}: no translations by {needed}")
        for network, values in {"selection": self.selection, **self.networks}.items():
            if not all(map(math.isfinite, (*values.macs, *values.seconds))):
                raise ValueError(f"{name}: costs of {network} that are not finite")
