"""The texts of a run: read or made, cleaned, joined over all directions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from coe_core.support.files import write_text
from translation.corpora import published
from translation.corpora.letters import main_script
from translation.corpora.lines import read_lines
from translation.corpora.numbers import number_pairs
from translation.corpora.pairs import clean, read_pairs, repeated, sampled
from translation.corpora.published import Pair
from translation.recipe import Recipe
from translation.recipe_texts import Direction
from translation.run import Run
from translation.training.calls import tag

_MOST_OVERLAP = 0.5  # of a test's pairs that may be in the training text, where they are left out


def prepare(run: Run, say: Callable[[str], None]) -> None:
    """Write ``text/`` of a run.

    Args:
        run: of which.
        say: told in a line what was left out, and how many pairs there are.

    Raises:
        ValueError: a language without text, texts that do not fit together, splits that overlap.
    """
    recipe = run.recipe
    by_direction = {d: _splits(recipe, d) for d in recipe.languages.directions}
    for direction, splits in by_direction.items():
        _clean(recipe, direction, splits, say)
    run.text(recipe.texts.train, "x").parent.mkdir(parents=True, exist_ok=True)
    for name in recipe.texts.names:
        _write(run, name, {d: splits[name] for d, splits in by_direction.items()})


def _splits(recipe: Recipe, direction: Direction) -> dict[str, list[Pair]]:
    """Pairs of every text of one direction."""
    texts = recipe.texts
    if texts.corpus == "files":
        return {name: read_pairs(texts.path, name, *direction) for name in texts.names}
    seed = recipe.seed if texts.seed is None else texts.seed
    held = {name: texts.held_out for name in ("valid", "test")}
    if texts.corpus == "numbers":
        drawn = number_pairs(texts.pairs + 2 * texts.held_out, seed)
        n = texts.held_out
        splits = {"train": drawn[2 * n :], "valid": drawn[:n], "test": drawn[n : 2 * n]}
    elif texts.corpus == "tatoeba":
        path = Path(texts.path or "").expanduser()
        splits = published.split_apart(published.tatoeba_pairs(path), held, seed)
    else:
        path = Path(texts.path or "").expanduser()
        splits = published.iwslt14_splits(path, texts.lowercase)
    if direction.source == "en":
        splits = {name: [(b, a) for a, b in pairs] for name, pairs in splits.items()}
    by_part = dict(zip(("train", "valid", "test"), splits.values(), strict=True))
    return dict(
        zip(texts.names, (by_part["train"], by_part["valid"], by_part["test"]), strict=True)
    )


def _clean(
    recipe: Recipe, direction: Direction, splits: dict[str, list[Pair]], say: Callable[[str], None]
) -> None:
    """Leave out of the training text what teaches nothing or is held out, and say how many."""
    train, rules = recipe.texts.train, recipe.texts.cleaning
    scripts = [main_script(pair[side] for pair in splits[train]) for side in range(2)]
    for name in recipe.texts.names[1:]:
        _check_scripts(direction, name, splits[name], scripts)
    pairs, left_out = clean(
        splits[train],
        max_words=rules.max_words,
        max_ratio=rules.max_ratio,
        duplicates=rules.duplicates,
        scripts=scripts if rules.scripts else None,
    )
    repeats = len(pairs) - len(set(pairs))
    for name in recipe.texts.names[1:]:
        held = set(splits[name])
        kept = [pair for pair in pairs if pair not in held]
        common = len(held & set(pairs))
        if common > _MOST_OVERLAP * len(held):
            raise ValueError(
                f"{name} and {train} overlap: {common} of {len(held)} pairs of {name} ({direction}) are in "
                "the training text, so that its scores would mean little; hold out other pairs"
            )
        left_out[f"also in {name}"] = len(pairs) - len(kept)
        pairs = kept
    if not pairs:
        raise ValueError(f"{train} ({direction}) has no pairs to learn from")
    splits[train] = pairs
    counts = ", ".join(f"{len(splits[name]):,} {name}" for name in recipe.texts.names)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
    line = f"{direction}: {counts} pairs"
    line += f"; left out of {train}: {reasons}" if reasons else ""
    say(line + (f"; {repeats:,} repeated ones stay" if repeats else ""))


def _check_scripts(
    direction: Direction, name: str, pairs: list[Pair], trained: list[str | None]
) -> None:
    """Refuse a held-out text in another script than the training text of its language."""
    for side, language in enumerate(direction):
        script = main_script(pair[side] for pair in pairs)
        if None not in (script, trained[side]) and script != trained[side]:
            raise ValueError(
                f"{name} ({language}) is written in {script}, the training text in {trained[side]}: are the "
                "languages exchanged?"
            )


def _write(run: Run, name: str, by_direction: dict[Direction, list[Pair]]) -> None:
    languages, texts = run.recipe.languages, run.recipe.texts
    if name == texts.train and len(by_direction) > 1:
        sizes = sampled([len(pairs) for pairs in by_direction.values()], languages.temperature)
        by_direction = {
            direction: repeated(pairs, size)
            for (direction, pairs), size in zip(by_direction.items(), sizes, strict=True)
        }
    rows = [(direction, pair) for direction, pairs in by_direction.items() for pair in pairs]
    for place, side in enumerate(languages.sides):
        lines = []
        for direction, pair in rows:
            line = pair[place].replace("\r", " ")
            if place == 0 and languages.tagged:
                line = f"{tag(direction.target)} {line}"
            lines.append(f"{line}\n")
        write_text(run.text(name, side), "".join(lines))
    if len(by_direction) > 1:
        write_text(run.directions(name), "".join(f"{direction}\n" for direction, _ in rows))
    groups = run.recipe.objective.groups
    if groups is not None and name == texts.train:
        of_row = [str(d) if groups == "direction" else getattr(d, groups) for d, _ in rows]
        write_text(run.text(name, "groups"), "".join(f"{group}\n" for group in of_row))


def select(run: Run, direction: Direction) -> None:
    """Write the lines of one direction of the train and valid texts in pieces, for its own networks."""
    texts = run.recipe.texts
    folder = run.pieces / str(direction)
    folder.mkdir(exist_ok=True)
    for name in (texts.train, texts.valid):
        of_line = read_lines(run.directions(name))
        for side in run.recipe.languages.sides:
            lines = read_lines(run.pieces / f"{name}.{side}")
            kept = [line for line, d in zip(lines, of_line, strict=True) if d == str(direction)]
            write_text(folder / f"{name}.{side}", "".join(f"{line}\n" for line in kept))
