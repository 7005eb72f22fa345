"""The range of learning rates that a recipe can be trained with: Lightning's test, on the recipe's data."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.warnings import PossibleUserWarning

from vision.data.load import load_data
from vision.data.loaders import train_loader
from vision.errors import RunError
from vision.precision import choose_precision
from vision.recipe import Recipe
from vision.training.batch_size import with_batch_size
from vision.training.finetuning import FineTuning, weights_to_start_from, with_own_statistics
from vision.training.train import train, training_module

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 100
LEAST = 10  # steps, below which a curve says nothing


@dataclass(frozen=True)
class RateRange:
    """What the test showed.

    Attributes:
        rates: learning rates, rising.
        losses: smoothed, one for each.
        suggested: where the loss falls fastest; None: it falls nowhere.
    """

    rates: list[float]
    losses: list[float]
    suggested: float | None

    def lines(self) -> Iterator[str]:
        """What the command prints: the curve at ten rates, and what to take."""
        for i in range(0, len(self.rates), max(1, len(self.rates) // 10)):
            yield f"lr {self.rates[i]:.1e}  loss {self.losses[i]:.3f}"
        if self.suggested is None:
            yield "the loss falls at none of these rates: look at the data (`coe-vision check`)"
        else:
            yield f"the loss falls fastest at train.lr={self.suggested:.1e}"


def find_rates(recipe: Recipe) -> RateRange:
    """Train some steps with a learning rate that rises from one to the next; nothing is kept.

    Args:
        recipe: whose networks, data and optimiser are tried; its learning rate is not used.

    Raises:
        RunError: the loss grew at once.
    """
    recipe = with_own_statistics(recipe)
    data = load_data(recipe.data, ())
    recipe = with_batch_size(recipe, len(data.train), train)
    batch, images = recipe.train.images_per_step, data.train.with_views(recipe.num_views)
    loader = train_loader(recipe.data, images, batch, recipe.seed)
    epochs = math.ceil(STEPS / max(1, len(loader)))  # few images in as many steps
    recipe = replace(recipe, train=replace(recipe.train, epochs=max(recipe.train.epochs, epochs)))
    seed_everything(recipe.seed, workers=True, verbose=False)
    module = training_module(recipe, data, weights_to_start_from(recipe))
    module.tried_rate = recipe.train.lr  # type: ignore[assignment]  # what the test asks for
    callbacks: list[Callback] = [FineTuning(recipe.train)] if module.networks.started.parts else []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)  # there is no validation
        trainer = Trainer(
            max_epochs=recipe.train.epochs,
            devices=1,
            precision=choose_precision(recipe.train.precision),  # type: ignore[arg-type]  # a text of those
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            num_sanity_val_steps=0,
            limit_val_batches=0,
        )
        found = Tuner(trainer).lr_find(
            module,
            train_dataloaders=loader,
            min_lr=LOWEST,
            max_lr=HIGHEST,
            num_training=STEPS,
            attr_name="tried_rate",
            update_attr=False,
        )
    if found is None or len(found.results["lr"]) < LEAST:
        made = found.results["lr"] if found is not None else []
        last = f", the last with a learning rate of {made[-1]:.1e}" if made else ""
        raise RunError(
            f"the test of learning rates ended after {len(made)} of {STEPS} steps{last}: the loss had "
            "grown to four times its least; look at the data (`coe-vision check`), or raise "
            f"train.batch_size, {batch} so far"
        )
    return RateRange(found.results["lr"], found.results["loss"], found.suggestion())
