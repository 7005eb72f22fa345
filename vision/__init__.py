"""Collaboration of Experts for images: timm's and torchvision's classifiers over coe_core.

A recipe is trained into a run, a folder, which is evaluated, calibrated, exported, and used for
prediction. The command line is ``coe-vision``. Every name here is loaded when it is first used.

Example:
    >>> import vision
    >>> recipe = vision.load_recipe("digits", ["train.epochs=1"])
    >>> recipe.num_experts
    4
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision.evaluation.calibrate import calibrate
    from vision.evaluation.evaluate import evaluate
    from vision.export.export import export_run
    from vision.prediction.predictor import Predictor
    from vision.recipe import load_recipe
    from vision.run import load_run
    from vision.training.train import train

_HOME_OF = {  # public name -> the module that defines it
    "Predictor": "vision.prediction.predictor",
    "calibrate": "vision.evaluation.calibrate",
    "evaluate": "vision.evaluation.evaluate",
    "export_run": "vision.export.export",
    "load_recipe": "vision.recipe",
    "load_run": "vision.run",
    "train": "vision.training.train",
}

__all__ = [
    "Predictor",
    "calibrate",
    "evaluate",
    "export_run",
    "load_recipe",
    "load_run",
    "train",
]


def __getattr__(name: str) -> Any:
    """A public name or ``__version__``, loaded on first use (PEP 562)."""
    if name == "__version__":
        from coe_core.support.provenance import toolkit_version

        value: Any = toolkit_version()
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__, "__version__"})
