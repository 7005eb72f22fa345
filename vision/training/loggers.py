"""A further logger of Lightning's, by name, beside the metrics file and TensorBoard's events of every run."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger

LOGS = Path("logs")  # in the run's folder


def further_logger(name: str | None, folder: Path) -> list[Logger]:
    """The logger that a recipe's ``train.logger`` names; none for None.

    Everything is kept in the run's folder; Weights & Biases logs offline, MLflow into files.

    Args:
        name: csv, tensorboard, mlflow or wandb.
        folder: of the run.

    Raises:
        ValueError: its package is not installed.

    Example:
        >>> [type(logger).__name__ for logger in further_logger("csv", Path("runs/a"))]
        ['CSVLogger']
    """
    place = (folder / LOGS).absolute()
    try:
        if name == "csv":
            return [CSVLogger(place, name=None, version="csv")]
        if name == "tensorboard":
            return [TensorBoardLogger(place, name=None, version="tensorboard")]
        if name == "mlflow":
            return [MLFlowLogger("coe-vision", folder.name, (place / "mlflow").as_uri())]
        if name == "wandb":
            place.mkdir(parents=True, exist_ok=True)
            return [WandbLogger(folder.name, place, offline=True, project="coe-vision")]
    except ModuleNotFoundError as error:
        raise ValueError(f"train.logger {name} needs its package: pip install {name}") from error
    return []
