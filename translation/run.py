"""A run of translation on disk: a folder with a recipe, texts, vocabulary, networks and results.

| file of the run | what it is |
|---|---|
| ``recipe.yaml``, ``provenance.json`` | what was asked, and what it was made with |
| ``stages/NAME`` | a mark of each stage that is finished |
| ``logs/NAME.log`` | what fairseq and other programs said in a stage |
| ``text/NAME.de``, ``.en`` | the texts as they are used; of several directions ``.src``, ``.tgt`` |
| ``text/NAME.directions`` | of several directions: that of each line, such as de-en |
| ``vocabulary/joint.model`` | SentencePiece's |
| ``pieces/``, ``data/`` | the texts in pieces; what fairseq-preprocess made of them |
| ``data/DIRECTION`` | the same of one direction alone, for controls of one network per direction |
| ``training/SYSTEM/checkpoint_*.pt`` | states of training |
| ``networks/team.pt``, ``networks/CONTROL.pt`` | the trained networks |
| ``metrics.csv``, ``training.png`` | losses, scores and loads over the training |
| ``decoded/NAME.json`` | translations of a text by every network |
| ``operating_points.json`` | thresholds, fitted on the validation text |
| ``evaluation/NAME/`` | table.csv, trade_off.csv, trade_off.png, translations of a test |
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from coe_core.errors import CoEError
from coe_core.support.plain_values import read_yaml
from translation.recipe import TEAM, Recipe, recipe_from_dict
from translation.recipe_texts import Direction

RECIPE = "recipe.yaml"


class RunError(CoEError):
    """A run folder cannot be used as asked; nothing in it was changed."""


@dataclass(frozen=True)
class Run:
    """Where everything of a run is; what is there depends on how far it is trained.

    Attributes:
        folder: of the run.
        recipe: what it was trained with.
    """

    folder: Path
    recipe: Recipe

    @property
    def recipe_file(self) -> Path:
        return self.folder / RECIPE

    @property
    def provenance(self) -> Path:
        return self.folder / "provenance.json"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.csv"

    @property
    def vocabulary(self) -> Path:
        """SentencePiece's model of all languages."""
        return self.folder / "vocabulary" / "joint.model"

    @property
    def dictionary(self) -> Path:
        """fairseq's dictionary of all pieces, where sentences are cut anew in each epoch."""
        return self.vocabulary.with_name("dict.txt")

    @property
    def pieces(self) -> Path:
        return self.folder / "pieces"

    def data(self, direction: Direction | None = None) -> Path:
        """What fairseq-preprocess made: of all directions together, or of one alone."""
        data = self.folder / "data"
        return data if direction is None else data / str(direction)

    def text(self, name: str, side: str) -> Path:
        """A text as it is used; ``side`` is one of `Languages.sides`."""
        return self.folder / "text" / f"{name}.{side}"

    def directions(self, name: str) -> Path:
        """Direction of each line of a text, where there are several."""
        return self.text(name, "directions")

    def subset(self, name: str) -> str:
        """A text's name in fairseq's data: train, valid, test, test1, ..."""
        place = self.recipe.texts.names.index(name)
        return ["train", "valid", "test"][place] if place < 3 else f"test{place - 2}"

    def stage(self, name: str) -> Path:
        """Mark of a stage that is finished."""
        return self.folder / "stages" / name

    def log(self, stage: str) -> Path:
        return self.folder / "logs" / f"{stage}.log"

    def training(self, system: str) -> Path:
        """States of the training of the team or of another network, see `Recipe.trained`."""
        return self.folder / "training" / system

    def network(self, system: str) -> Path:
        """A trained network, averaged: fairseq's checkpoint."""
        return self.folder / "networks" / f"{system}.pt"

    @property
    def team(self) -> Path:
        """The team's checkpoint."""
        return self.network(TEAM)

    @property
    def controls(self) -> dict[str, list[Path]]:
        """Checkpoints of every control of one network and every ensemble, by name."""
        recipe = self.recipe
        networks = {
            name: [self.network(name)]
            for name, control in recipe.controls.items()
            if control.one_per is None
        }
        return networks | {
            name: [self.network(f"{name}.{member}") for member in range(ensemble.size)]
            for name, ensemble in recipe.ensembles.items()
        }

    @property
    def controls_by_direction(self) -> dict[str, dict[Direction, Path]]:
        """Checkpoints of every control of one network per direction, by name."""
        directions = self.recipe.languages.directions
        return {
            name: {direction: self.network(f"{name}.{direction}") for direction in directions}
            for name, control in self.recipe.controls.items()
            if control.one_per is not None
        }

    @property
    def services(self) -> dict[str, list[Path]]:
        """Checkpoints of all that a text can be translated with beside the team, by name.

        Controls of one network per direction are one for each: NAME.de-en.
        """
        return self.controls | {
            f"{name}.{direction}": [path]
            for name, of_direction in self.controls_by_direction.items()
            for direction, path in of_direction.items()
        }

    def decoded(self, name: str) -> Path:
        """Translations of a text by every network, see `translation.evaluation.translations`."""
        return self.folder / "decoded" / f"{name}.json"

    @property
    def points(self) -> Path:
        """Thresholds by system and aim, see `translation.evaluation.calibrate.load_points`."""
        return self.folder / "operating_points.json"

    def evaluation(self, name: str) -> Path:
        """Folder of the results on a test text."""
        return self.folder / "evaluation" / name


def load_run(path: str | PathLike[str], trained: bool = True) -> Run:
    """A run by its folder.

    Args:
        path: of the folder.
        trained: refuse one whose team is not trained yet.

    Raises:
        RunError: no such run, a damaged recipe, or one that is not trained.
    """
    folder = Path(path)
    file = folder / RECIPE
    if not file.is_file():
        what = "there is no run" if folder.exists() else "no such folder: there is no run"
        raise RunError(
            f"{folder}: {what} in it; coe-translation train RECIPE --out {folder} makes one"
        )
    try:
        run = Run(folder, recipe_from_dict(read_yaml(file), str(file)))
    except ValueError as error:
        raise RunError(f"{error}; the run is damaged") from error
    if trained and not run.team.is_file():
        raise RunError(
            f"{folder} is not trained yet; continue it with coe-translation train {file} --out {folder} "
            "--resume"
        )
    return run
