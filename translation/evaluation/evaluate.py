"""Runs of several seeds beside all their controls: mean, spread, paired bootstrap, direction by direction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from coe_core.support.files import write_text
from coe_core.support.reports import Spread, csv_text, figure_to, markdown_table, mean_and_spread
from translation.evaluation import table
from translation.evaluation.bootstrap import Difference, difference, draws
from translation.evaluation.calibrate import load_points
from translation.evaluation.metrics import CorpusQuality, Scoring
from translation.evaluation.systems import CASCADE, COE, routed_systems
from translation.evaluation.translations import Translations
from translation.run import Run, RunError


class Comparison(NamedTuple):
    """The collaboration at one threshold beside one control."""

    system: str
    control: str
    difference: Difference  # in BLEU


class Evaluation(NamedTuple):
    """What `evaluate` found on one test."""

    rows: list[table.SummaryRow]
    comparisons: list[Comparison]
    directions: dict[str, dict[str, Spread]]  # system -> direction -> BLEU; empty for one direction
    loads: dict[str, list[float]]  # direction -> part of its sentences that each expert gets


def evaluate(runs: Sequence[Run], folder: Path, name: str) -> Evaluation:
    """Table, comparisons and pictures of one test; writes them to ``folder``.

    Args:
        runs: of one recipe, differing in seed.
        folder: for the results; made if missing. Files of an earlier evaluation are replaced.
        name: of the test.

    Raises:
        RunError: runs of different test sets, or that were not decoded yet.
    """
    seeds = [_load(run, name) for run in runs]
    if any(seed.reference != seeds[0].reference for seed in seeds):
        raise RunError(
            f"{name} is not the same text in all runs; evaluate runs of one recipe together"
        )
    scoring = _scoring(seeds[0])
    tables = [
        table.rows(seed, load_points(run.points).points, scoring)
        for run, seed in zip(runs, seeds, strict=True)
    ]
    summary = table.summary(tables)
    controls = [*runs[0].recipe.controls, *runs[0].recipe.ensembles]
    evaluation = Evaluation(
        summary,
        _comparisons(tables, controls, CorpusQuality("BLEU", seeds[0].reference, scoring)),
        _by_direction(tables, seeds[0], scoring),
        _loads(seeds),
    )
    _write(folder, evaluation)
    for run, seed in zip(runs, seeds, strict=True):
        end = f"-{run.folder.name}" if len(runs) > 1 else ""
        table.write_curves(folder / f"trade_off{end}.csv", seed, scoring)
        table.draw(folder / f"trade_off{end}.png", seed, name, scoring)
    return evaluation


def _load(run: Run, name: str) -> Translations:
    path = run.decoded(name)
    if not path.is_file():
        raise RunError(
            f"{run.folder} has no translations of {name} yet; continue it with coe-translation train "
            f"{run.recipe_file} --out {run.folder} --resume"
        )
    return Translations.load(path)


def _scoring(translations: Translations) -> Scoring:
    stored = translations.provenance.get("scoring")
    return Scoring(**stored) if isinstance(stored, dict) else Scoring()


def _comparisons(
    tables: Sequence[Sequence[table.SystemRow]], controls: Sequence[str], quality: CorpusQuality
) -> list[Comparison]:
    """Of every row of the collaboration with every control, and with the cascade at the same aim."""
    texts: dict[str, list[list[str]]] = {}
    for rows in tables:
        for row in rows:
            if row.text is not None:
                texts.setdefault(row.name, []).append(row.text)
    whole = {system: of_seeds for system, of_seeds in texts.items() if len(of_seeds) == len(tables)}
    counts = {
        system: [quality.counts(text) for text in of_seeds]
        for system, of_seeds in whole.items()
        if system in controls or system.startswith((f"{COE}, ", f"{CASCADE}, "))
    }
    drawn = draws(len(quality.reference))
    comparisons = []
    for system in (name for name in counts if name.startswith(f"{COE}, ")):
        others = [*controls, system.replace(COE, CASCADE, 1)]
        for control in (name for name in others if name in counts):
            compared = difference(quality, counts[system], counts[control], drawn)
            comparisons.append(Comparison(system, control, compared))
    return comparisons


def _by_direction(
    tables: Sequence[Sequence[table.SystemRow]], translations: Translations, scoring: Scoring
) -> dict[str, dict[str, Spread]]:
    """BLEU of every system on the sentences of each direction."""
    of_systems: dict[str, dict[str, Spread]] = {}
    for direction in dict.fromkeys(translations.directions):
        places = [i for i, other in enumerate(translations.directions) if other == direction]
        quality = CorpusQuality("BLEU", [translations.reference[i] for i in places], scoring)
        scores: dict[str, list[float]] = {}
        for rows in tables:
            for row in rows:
                if row.text is not None:
                    counts = quality.counts([row.text[i] for i in places]).sum(0, keepdim=True)
                    scores.setdefault(row.name, []).append(float(quality.scores(counts)[0]))
        for system, values in scores.items():
            of_systems.setdefault(system, {})[direction] = mean_and_spread(values)
    return of_systems


def _loads(seeds: Sequence[Translations]) -> dict[str, list[float]]:
    """Of the first seed: experts have no common order over seeds."""
    first = seeds[0]
    selected = routed_systems(first)[COE].selected_expert
    of_directions = {}
    for direction in dict.fromkeys(first.directions):
        mine = torch.tensor([other == direction for other in first.directions])
        counts = torch.bincount(selected[mine], minlength=first.num_experts)
        of_directions[direction] = (counts / counts.sum()).tolist()
    return of_directions


def _write(folder: Path, evaluation: Evaluation) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table.write_csv(folder / "table.csv", evaluation.rows)
    cells = [[row.name, *(column.shown(2) for column in row.columns)] for row in evaluation.rows]
    write_text(folder / "table.md", markdown_table(["system", *table.COLUMNS], cells))
    headings = ["system", "control", "BLEU difference", "low", "high", "p"]
    rows = [
        [c.system, c.control, *c.difference.interval, c.difference.p]
        for c in evaluation.comparisons
    ]
    write_text(folder / "comparisons.csv", csv_text(headings, rows))
    if not evaluation.directions:
        return
    names = list(evaluation.loads)
    lines = [
        [system, *(scores[direction].mean for direction in names)]
        for system, scores in evaluation.directions.items()
    ]
    write_text(folder / "directions.csv", csv_text(["system", *names], lines))
    draw_loads(folder / "directions_per_expert.png", evaluation.loads)


def draw_loads(path: Path, loads: dict[str, list[float]]) -> None:
    """Which part of each direction's sentences each expert gets, as a picture of direction by expert."""
    directions, experts = list(loads), len(next(iter(loads.values())))
    with figure_to(path, (2.5 + 0.8 * experts, 1.5 + 0.4 * len(directions))) as figure:
        axes = figure.subplots()
        image = axes.imshow(
            [loads[d] for d in directions], vmin=0, vmax=1, cmap="Blues", aspect="auto"
        )
        axes.grid(visible=False)
        axes.set_yticks(range(len(directions)), directions)
        axes.set_xticks(range(experts), [f"expert {j}" for j in range(experts)])
        for row, direction in enumerate(directions):
            for column, part in enumerate(loads[direction]):
                color = "white" if part > 0.5 else "black"
                axes.text(column, row, f"{100 * part:.0f}%", ha="center", va="center", color=color)
        figure.colorbar(image, label="part of the sentences")
