"""Labels worth a look: where every network of every run is sure of one other class."""

import csv
import io

import pytest
import torch

from vision.data.images import ImageSet
from vision.data.section import Data
from vision.evaluation.doubted import csv_table, doubted_labels, shown, sure_of_another
from vision.evaluation.predictions import Predictions

TARGET = torch.tensor([0, 0, 0, 0, 1])


def network(classes, scale=5.0):
    return scale * torch.nn.functional.one_hot(torch.tensor(classes), 3).float()


def predictions(*controls, scale=5.0):
    logits = {f"{i}": network(classes, scale) for i, classes in enumerate(controls)}
    return Predictions(TARGET, None, None, None, logits)


@pytest.fixture
def images():
    paths = [f"photos/{i}.png" for i in range(5)]
    return ImageSet(TARGET, ["ant", "bee", "c"], Data().preprocess(), paths=paths)


def test_all_networks_sure_of_the_same_other_class():
    sure = sure_of_another(predictions([0, 1, 1, 2, 1], [0, 1, 2, 2, 1]))
    probability = float(torch.tensor([5.0, 0, 0]).softmax(0)[0])
    assert sure.least.tolist() == pytest.approx([0, probability, 0, probability, 0])
    assert (
        float(sure_of_another(predictions([1] * 5)).least.max()) == 0
    )  # one network is no witness
    broken = predictions([1] * 5, [1] * 5)
    broken.control_logits["0"][0, 0] = torch.nan
    assert float(sure_of_another(broken).least.max()) == 0


def test_the_delegator_and_the_selected_expert_are_asked(images):
    experts = torch.stack([network([1] * 5), network([0] * 5)], 1)
    selection = torch.nn.functional.one_hot(torch.tensor([0, 1, 0, 1, 0]), 2).float()
    team = Predictions(TARGET, network([1] * 5), selection, experts, {})
    assert [row.file[7] for row in doubted_labels("test", images, [team])] == ["0", "2"]


def test_every_run_must_agree(images):
    first = predictions([1, 1, 1, 2, 1], [1, 1, 1, 2, 1])
    second = predictions([1, 1, 0, 1, 1], [1, 1, 0, 1, 1], scale=9.0)
    unsure = predictions([1] * 5, [1] * 5, scale=1.0)
    rows = doubted_labels("test", images, [first, second])
    assert [(row.file, row.label, row.answer) for row in rows] == [
        ("photos/0.png", "ant", "bee"),
        ("photos/1.png", "ant", "bee"),
    ]
    assert doubted_labels("test", images, [first, unsure]) == []
    read = list(csv.DictReader(io.StringIO(csv_table(rows))))
    assert [line["file"] for line in read] == ["photos/0.png", "photos/1.png"]
    assert float(read[0]["least_probability"]) > 0.9
    assert shown(rows) == (
        "2 held-out images whose labels are worth a look: all networks are at least 90% sure of another "
        "class, such as photos/0.png, which is ant and taken for bee"
    )
