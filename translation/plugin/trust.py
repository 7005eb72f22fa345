"""What of a checkpoint fairseq may build: plain values, by names that this toolkit knows.

A checkpoint is loaded with ``weights_only``, so it holds plain values. That is not enough: fairseq passes
some of these values to Python's ``eval`` (``conv_feature_layers`` of wav2vec2, ``adaptive_softmax_cutoff`` of
a transformer, ``wer_args`` of the CTC criterion) and looks up others among the globals of a module, so plain
text in them would run. Therefore every checkpoint that fairseq loads while the plugin is registered is
checked first, whichever command loads it: its architecture is one of ours or fairseq's ``transformer``, its
task and criterion are of translation, and no value that fairseq evaluates, or opens as a file, is anything
but what it should be.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

TASKS = ("coe_translation", "translation")
CRITERIA = (
    "coe_label_smoothed_cross_entropy",
    "label_smoothed_cross_entropy",
    "cross_entropy",
)
BPES = ("sentencepiece", "subword_nmt", "fastbpe", "characters", "bytes")
TOKENIZERS = ("moses", "nltk", "space")
METERS = ("AverageMeter", "SumMeter", "ConcatTensorMeter", "TimeMeter", "StopwatchMeter")
EVALUATED = ("adaptive_softmax_cutoff", "adaptive_input_cutoff", "xformers_att_config")
FILES = ("encoder_embed_path", "decoder_embed_path")
SECTIONS = (
    "model",
    "task",
    "criterion",
    "bpe",
    "tokenizer",
    "optimizer",
    "lr_scheduler",
    "scoring",
)
_DEEPEST = 16  # levels of a configuration
_MOST_POSITIONS = 1_000_000


def architectures() -> list[str]:
    """Names of the architectures that may be built from a checkpoint. Loads fairseq."""
    from fairseq.models import ARCH_MODEL_REGISTRY
    from fairseq.models.transformer import TransformerModel

    from translation.plugin.model import CoETransformerModel

    known = (TransformerModel, CoETransformerModel)
    return sorted(name for name, kind in ARCH_MODEL_REGISTRY.items() if kind in known)


def options_of(part: Any) -> Mapping[str, Any]:
    """Options of a part of a configuration, which fairseq stores as a dict or as a Namespace."""
    if part is None:
        return {}
    return part if isinstance(part, Mapping) else vars(part)


def sections(state: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The stored configuration by section; that of an older checkpoint (``args``) has every option in each.

    Args:
        state: a checkpoint as `torch.load` returns it.
    """
    if state.get("args") is not None:
        flat = options_of(state["args"])
        return {section: {**flat, "_name": flat.get(section)} for section in SECTIONS}
    stored = options_of(state.get("cfg"))
    named = {name: {"_name": part} for name, part in stored.items() if isinstance(part, str)}
    return named | {name: options_of(part) for name, part in stored.items() if _has_options(part)}


def _has_options(part: Any) -> bool:
    return isinstance(part, Mapping) or hasattr(part, "__dict__")


def check_configuration(
    state: Mapping[str, Any], path: str, overrides: Mapping[str, Any] | None = None
) -> None:
    """Refuse a checkpoint of which fairseq would build, evaluate or open what it should not.

    Args:
        state: a checkpoint as `torch.load` returns it.
        path: of the checkpoint, for the message.
        overrides: options that the user sets anew; of these the stored value does not matter.

    Raises:
        ValueError: a name that is not known, an interpolation, or a value of another kind.
    """
    parts = sections(state)
    known: dict[str, Sequence[str]] = {
        "model": architectures(),
        "task": TASKS,
        "criterion": CRITERIA,
        "bpe": BPES,
        "tokenizer": TOKENIZERS,
    }
    for section, names in known.items():
        options = parts.get(section, {})
        # Where fairseq finds the name depends on how old the configuration is.
        places = ("_name", section, "arch" if section == "model" else section)
        given = {str(options[key])[:60] for key in places if options.get(key) is not None}
        needed = section in ("model", "task")
        nothing: list[str | None] = [None] if needed and not given else []
        if unknown := sorted(given - set(names)) or nothing:
            raise ValueError(
                f"{path}: its {section} is {unknown[0]!r}, and of what a checkpoint names only what this "
                f"toolkit knows is built: {', '.join(names)}"
            )
    for section in ("optimizer", "lr_scheduler", "scoring"):
        name = parts.get(section, {}).get("_name")
        if name is not None and not re.fullmatch(r"[\w-]{1,60}", str(name)):
            raise ValueError(f"{path}: its {section} is {str(name)[:60]!r}, which is no name")
    for source in ("cfg", "args"):
        for key, value in _values(state.get(source), path):
            _check_value(key, value, path, overrides or {})
    _check_meters(state, path)


def _values(part: Any, path: str, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every key and every value that is not a container; keys that are no text are refused."""
    if depth > _DEEPEST:
        raise ValueError(f"{path}: its configuration is nested more than {_DEEPEST} levels deep")
    if isinstance(part, (list, tuple, set)):
        yield key, part
        for value in part:
            yield from _values(value, path, key, depth + 1)
    elif _has_options(part):
        yield key, part
        for name, value in options_of(part).items():
            if not isinstance(name, str):
                raise ValueError(
                    f"{path}: its configuration has the key {name!r}, which is no text"
                )
            yield from _values(value, path, name, depth + 1)
    else:
        yield key, part


def _check_value(key: str, value: Any, path: str, overrides: Mapping[str, Any]) -> None:
    if isinstance(value, str) and "${" in value:
        raise ValueError(
            f"{path}: its option {key} is {value[:60]!r}; nothing is looked up for a checkpoint"
        )
    if key in overrides or value is None:
        return
    if key.endswith(EVALUATED) and isinstance(value, str):
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            raise ValueError(
                f"{path}: its option {key} is {value[:60]!r}, which fairseq would run; "
                "a list of numbers is expected"
            ) from None
    if key in FILES:
        raise ValueError(
            f"{path}: its option {key} names a file, {str(value)[:60]!r}, and a checkpoint opens none; its "
            f"own embeddings are used with --model-overrides \"{{'{key}': None}}\""
        )


def _check_meters(state: Mapping[str, Any], path: str) -> None:
    """fairseq makes the meters of a resumed training by the names of classes that the checkpoint has."""
    extra = state.get("extra_state")
    stored = extra.get("metrics") if isinstance(extra, Mapping) else None
    for meters in (stored or {}).values() if isinstance(stored, Mapping) else ():
        for entry in meters:
            kind = entry[2] if isinstance(entry, (list, tuple)) and len(entry) > 2 else entry
            if kind not in METERS:
                raise ValueError(
                    f"{path}: it stores a meter {str(kind)[:60]!r}; known: {', '.join(METERS)}"
                )


def check_sizes(state: Mapping[str, Any], path: str) -> None:
    """Refuse sizes that the stored parameters cannot have, before memory is asked for them.

    Raises:
        ValueError: more layers or experts than tensors, or a width that no tensor has.
    """
    tensors = state["model"]
    widest = max((max(value.shape, default=1) for value in tensors.values()), default=1)
    for key, value in sections(state).get("model", {}).items():
        if value is None or not isinstance(key, str) or key.startswith("expert_"):
            continue
        most = None
        if key.endswith("_layers") or key == "num_experts":
            most = len(tensors)
        elif key.endswith(("_dim", "_heads")):
            most = widest
        elif key.endswith("_positions"):
            most = _MOST_POSITIONS
        if most is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError(
                f"{path}: its option {key} is {str(value)[:60]!r}, which is no whole number"
            )
        if most is not None and value > most:
            raise ValueError(
                f"{path}: its option {key} is {value}, but its {len(tensors)} tensors allow at most {most}; "
                "the checkpoint is damaged, or its configuration is another's"
            )


class Loaded(NamedTuple):
    """A checkpoint that fairseq has loaded."""

    path: str
    direction: str | None  # such as de-en, that it was trained for; None: it does not say


_loaded: list[Loaded] = []  # in their order


def last_loaded() -> Loaded | None:
    """The checkpoint that fairseq loaded last: it builds each model right after loading it."""
    return _loaded[-1] if _loaded else None


def check_direction(loaded: Loaded, direction: str) -> None:
    """Refuse a checkpoint of another direction: it would translate into the wrong language.

    Raises:
        ValueError: it was trained for another.
    """
    if loaded.direction not in (None, direction):
        raise ValueError(
            f"{loaded.path} was trained for {loaded.direction}, and this is {direction}: give other data, or "
            "other --source-lang and --target-lang"
        )


def check_languages(given: Sequence[str | None], held: Sequence[str], folder: str | None) -> None:
    """Refuse a language that a data folder has not: fairseq looks for both where one is not given.

    Raises:
        ValueError: another is there.
    """
    if any(asked not in (None, has) for asked, has in zip(given, held, strict=True)):
        asked = "-".join(language or "" for language in given)
        raise ValueError(f"{folder} holds {'-'.join(held)}, not {asked}")


def no_such_set(split: str, task: Any) -> str:
    """What is said of a set that a data folder has not; ``task``: the options."""
    folder, kind = Path(task.data.split(os.pathsep)[0]), task.dataset_impl
    kind = "" if kind is None else f" of --dataset-impl {kind} (to be left out)"
    known = sorted({file.name.partition(".")[0] for file in folder.glob("*.idx")})
    return f"there is no set {split!r} in {folder}{kind}; there are: {', '.join(known) or 'none'}"


def _direction(state: Mapping[str, Any]) -> str | None:
    task = sections(state).get("task", {})
    source, target = (task.get(f"{side}_lang") for side in ("source", "target"))
    return f"{source}-{target}" if source and target else None


def guard_fairseq(look: Callable[[str], Mapping[str, Any]]) -> None:
    """Let fairseq load a checkpoint only after `check_configuration`. Calling it again has no effect.

    Args:
        look: file of a checkpoint -> what is in it, as plain values.
    """
    from fairseq import checkpoint_utils

    load = checkpoint_utils.load_checkpoint_to_cpu
    if getattr(load, "guarded", False):
        return

    @wraps(load)
    def guarded(path, arg_overrides=None, *more, **named):
        local = checkpoint_utils.PathManager.get_local_path(path)
        state = look(local)
        check_configuration(state, str(path), arg_overrides)
        check_sizes(state, str(path))
        _loaded.append(Loaded(str(local), _direction(state)))
        return load(path, arg_overrides, *more, **named)

    guarded.guarded = True  # type: ignore[attr-defined]  # a mark for the next call
    checkpoint_utils.load_checkpoint_to_cpu = guarded
