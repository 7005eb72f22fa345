"""The law of a run: what its specialists gain, what wrong routes cost, what pooling adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from coe_core import Law, gain_law
from coe_core.support.reports import csv_text
from vision.evaluation.predictions import Predictions
from vision.evaluation.stages import SECOND, FittedStage

_COLUMNS = ("seed", *Law._fields, "above_mean_expert", "above_single")


def team_law(predictions: Predictions, stage: FittedStage) -> Law:
    """The law of a team without exits, in top-1; beside the expert's network trained alone, if any.

    Args:
        predictions: of the test data.
        stage: the collaboration, its pooling fitted on held-out data.
    """
    _, selection, answers = predictions.team
    quality = torch.stack([predictions.right(logits) for logits in answers.unbind(1)], 1)
    final = stage.test.qualities["accuracy"].final[:, 0]
    alone = predictions.control_logits.get(SECOND)
    if alone is not None and not bool(alone.isfinite().all()):
        alone = None  # it has diverged
    return gain_law(quality, selection, final, None if alone is None else predictions.right(alone))


def law_table(seeds: Sequence[int], laws: Sequence[Law]) -> str:
    """A run's law in a line of CSV each: parts in [0, 1], not in percent.

    Example:
        >>> print(law_table([3], [Law(0.5, 0.5, 0.2, 0.1, 0.0, None)]).splitlines()[1])
        3,0.5,0.5,0.2,0.1,0,,0.1,
    """
    rows = [
        [seed, *law, law.above_mean_expert, law.above_single]
        for seed, law in zip(seeds, laws, strict=True)
    ]
    return csv_text(_COLUMNS, rows)
