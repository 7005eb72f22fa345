"""The smallest recipe of ensembles."""

import yaml

SMALL = {"name": "small_resnet", "options": {"width": 4, "stages": 2}}


WIDE = {"name": "small_resnet", "options": {"width": 8, "stages": 2}}


RECIPE = {
    "data": {"augmentation": ["shift"], "train_fraction": 0.2},
    "controls": {"undivided": WIDE},
    "ensembles": {
        "of 1": {"network": WIDE, "s": 1},
        "of 3": {"network": SMALL, "s": 3, "rule": "none"},
    },
    "train": {"epochs": 2, "batch_size": 32, "precision": "32-true"},
}


def recipe_file(folder, changes=None):
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **(changes or {})}))
    return path
