"""A system of a run or a checkpoint, ready to be exported, and compared with its export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from coe_core.stored_points import CASCADE, COE, has_exits
from translation.evaluation.translations import DELEGATOR_ALONE, EXPERT_ALONE
from translation.export.check import Comparison, Translated, compare
from translation.export.export import ExportError, Network, Search, System, export_system
from translation.generation.routers import certainty
from translation.plugin.checkpoints import load_state, network_names, plain_network, take_network
from translation.prediction import engine as prediction
from translation.prediction.fairseq_engine import FairseqEngine


def export_from(
    engine: FairseqEngine,
    setting: prediction.Setting,
    folder: Path,
    *,
    search: prediction.Search,
    int8: bool = False,
    check: Callable[[Path], object] | None = None,
) -> dict[str, int]:
    """See `translation.export.export.export_system`.

    Args:
        engine: with the networks.
        setting: system, and the export's own threshold.
        folder: new or empty.
        search: defaults of the runner.
        int8: weights in 8 bits.
        check: of the folder.

    Raises:
        ExportError: see there, or a system that CTranslate2 does not compute.
        ValueError: see there.
    """
    points = engine.budgets.stored.named(setting.system)
    default = {"name": setting.name, "threshold": setting.threshold}
    fitted = {"beam": search.beam, "lenpen": search.lenpen}
    if setting.name in points:
        default["fitted_with"] = points[setting.name].fitted_with
    elif setting.num_samples:  # read off the curve of translations by this search
        default["fitted_with"] = fitted
    return export_system(
        system_of(engine, setting.system),
        folder,
        default=default,
        points=points,
        used=engine.used_with(setting.system) | fitted,
        int8=int8,
        search=Search(search.beam, search.lenpen, search.max_len),
        sentencepiece=engine.vocabulary,
        check=check,
    )


def system_of(engine: FairseqEngine, name: str) -> System:
    """The networks of one of an engine's systems.

    Raises:
        ExportError: an ensemble.
        ValueError: a checkpoint of another kind of network.
    """
    networks = _of_team(engine) if name == COE else _of_controls(engine, name)
    head = engine.team.selection.linear if name == COE and engine.team is not None else None
    data, checkpoint = str(engine.data), engine.path.name
    return System(name, networks, head, engine.task, data, engine.confidence, checkpoint)


def _of_team(engine: FairseqEngine) -> dict[str, Network]:
    state, team = load_state(engine.path), engine.team
    assert team is not None, "another system is resolved without one"
    names = network_names(team.num_experts)
    return {
        name.replace("-", "_"): Network(model, take_network(state, name))
        for name, model in zip(names, [team.delegator, *team.experts], strict=True)
    }


def _of_controls(engine: FairseqEngine, system: str) -> dict[str, Network]:
    names = [DELEGATOR_ALONE, EXPERT_ALONE] if system == CASCADE else [system.partition(":")[2]]
    models = [engine.networks_of(name) for name in names]
    if len(models[0]) > 1:
        raise ExportError(
            f"{system} averages the probabilities of {len(models[0])} networks, and CTranslate2 translates "
            "with one at a time: export another system (--system)"
        )
    paths = [engine.controls.get(name, [engine.path])[0] for name in names]
    folders = ["delegator", "expert_0"] if system == CASCADE else ["network"]
    return {
        folder: Network(model, plain_network(load_state(path)))
        for folder, (model,), path in zip(folders, models, paths, strict=True)
    }


def check_export(
    engine: FairseqEngine,
    setting: prediction.Setting,
    search: prediction.Search,
    folder: Path,
    subset: str,
    count: int,
) -> Comparison:
    """Translate some sentences by fairseq and by the export, and say how often they agree.

    Args:
        engine: that was exported.
        setting: of both.
        search: of both.
        folder: of the export.
        subset: of the data, such as "valid".
        count: sentences, the first of the set.
    """
    threshold = None
    if has_exits(setting.system):
        # Where none may exit the delegator would not translate, and could not be compared.
        threshold = min(setting.threshold, certainty(engine.confidence))
        setting = setting._replace(threshold=threshold)
    task = engine.task
    task.load_dataset(subset)
    dataset = task.dataset(subset)
    rows = range(min(count, len(dataset)))
    sources = [task.source_dictionary.string(dataset[row]["source"]).split() for row in rows]
    reference = [engine.text_of(dataset[row]["target"]) for row in rows]

    def translate(sentences: Sequence[list[str]]) -> list[Translated]:
        answers = engine.decode(sentences, setting, search, 1)
        return [Translated(a.texts[0], a.route, a.confidence) for a in answers]

    return compare(translate, folder, sources, reference, threshold)
