"""COMET, a metric that is a trained network, by the package and the model file that a user has."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coe_core import paired_difference
from translation.evaluation.scoring import Score

NAME = "COMET"
_BATCH = 16


def comet_scores(
    model: str | Path,
    systems: Mapping[str, Sequence[str]],
    sources: Sequence[str],
    reference: Sequence[str],
) -> dict[str, Score]:
    """COMET of several systems, times 100; every one but the first is tested against the first.

    The test is that of the mean difference of the sentences' scores. Unlike everything that is ours COMET's
    loading runs what a checkpoint holds: only a file that is trusted should be given.

    Args:
        model: checkpoint (model.ckpt, hparams.yaml beside its folder), as the package downloads it.
        systems: translations by name.
        sources: what was translated.
        reference: one translation of each.

    Raises:
        ValueError: no such file, no package, texts of different length, or a model that it does not load.
    """
    path = Path(model)
    if not path.is_file():
        raise ValueError(
            f"--comet {path}: no such file; give a COMET checkpoint that is here (model.ckpt), none is "
            "downloaded"
        )
    for name, text in {**systems, "the reference": reference}.items():
        if len(text) != len(sources):
            raise ValueError(f"{name} has {len(text)} lines, the source {len(sources)}")
    network = _load(path)
    each = {}
    for name, text in systems.items():
        rows = [
            {"src": source, "mt": translation, "ref": of_reference}
            for source, translation, of_reference in zip(sources, text, reference, strict=True)
        ]
        said = network.predict(rows, batch_size=_BATCH, gpus=0, progress_bar=False)
        each[name] = [100 * float(value) for value in said.scores]
    return _scored(each, path)


def _load(path: Path) -> Any:
    try:
        load_from_checkpoint = importlib.import_module("comet").load_from_checkpoint
    except ImportError as error:
        raise ValueError(
            "--comet needs the package unbabel-comet, which is not installed here: pip install unbabel-comet "
            f"({error})"
        ) from error
    try:
        return load_from_checkpoint(str(path))
    except Exception as error:  # of torch, of Lightning, of transformers
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"--comet {path}: not loaded: {type(error).__name__}: {first}") from error


def _scored(each: Mapping[str, Sequence[float]], path: Path) -> dict[str, Score]:
    import torch

    columns = {name: torch.tensor(values, dtype=torch.float64) for name, values in each.items()}
    first = next(iter(columns.values()))
    found = {}
    for name, column in columns.items():
        p_value = None if column is first else paired_difference(column, first).p_value
        found[name] = Score(NAME, float(column.mean()), f"{NAME}|{path.name}", p_value)
    return found
