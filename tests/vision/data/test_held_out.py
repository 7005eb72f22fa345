"""What is held out: whole groups, and near-copies told where the part is cut image by image."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vision.data.held_out import draw_groups
from vision.data.load import load_data
from vision.data.near_copies import Alike, correlation, find_pairs
from vision.data.section import Data


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=60),
    st.floats(0.05, 0.95),
    st.integers(0, 3),
)
@settings(max_examples=100, deadline=None)
def test_whole_groups_are_drawn_and_every_class_is_left_some(samples, part, seed):
    targets, groups = np.array(samples).T
    drawn = draw_groups(targets, groups, part, seed)
    for group in np.unique(groups):
        assert len(set(drawn[groups == group])) == 1
    for c in np.unique(targets):
        assert not drawn[targets == c].all()
    assert (draw_groups(targets, groups, part, seed) == drawn).all()


def test_about_the_part_of_every_class():
    targets = np.repeat(np.arange(5), 400)
    groups = np.arange(2000) // 10
    drawn = draw_groups(targets, groups, 0.2, seed=0)
    assert [int(drawn[targets == c].sum()) for c in range(5)] == [80] * 5


def test_a_class_of_two_large_groups_gets_its_smaller_one():
    targets = np.array([0] * 20 + [1] * 5)
    groups = np.array([*range(20), 90, 90, 90, 91, 91])
    drawn = draw_groups(targets, groups, 0.1, seed=0)
    assert drawn[20:].tolist() == [False, False, False, True, True]


def frames(root, series=6, of_each=8):
    """Class folders of series: eight frames of a picture that hardly differ, named SERIES_FRAME."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / "train" / name).mkdir(parents=True)
        for number in range(series):
            picture = generator.integers(0, 200, (16, 16, 3))
            for frame in range(of_each):
                pixels = picture + generator.integers(0, 4, picture.shape)
                file = root / "train" / name / f"{number:02}_{frame:02}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(file)
    return root


def load(root, **options):
    return load_data(
        Data(**{"name": "folder", "path": str(root), "channels": 3, "validation": 0.3, **options})
    )


@pytest.mark.filterwarnings("ignore:folder. no test split")
def test_near_copies_are_told_where_the_part_is_cut_at_random(tmp_path):
    frames(tmp_path)
    message = r"cut at random, but \d+% of \d+ neighbouring .* nearly one picture, \d+% of other"
    with pytest.warns(UserWarning, match=message):
        data = load(tmp_path)
    assert "stratified" in data.provenance["held_out"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "folder: no test split")
        data = load(tmp_path, group="prefix")
    series = [{path[:-7] for path in images.paths} for images in (data.train, data.validation)]
    assert len(series[0]) + len(series[1]) == 12
    assert not series[0] & series[1]
    assert "4 of 12 whole groups of prefix" in data.provenance["held_out"]


@pytest.mark.filterwarnings("ignore:folder. no test split")
def test_groups_by_folder(tmp_path):
    frames(tmp_path / "flat")
    for file in sorted((tmp_path / "flat/train").rglob("*.png")):
        patient = tmp_path / "data/train" / file.parent.name / f"patient {file.name[:2]}"
        patient.mkdir(parents=True, exist_ok=True)
        file.rename(patient / file.name)
    data = load(tmp_path / "data", group="folder")
    assert "whole groups of folder" in data.provenance["held_out"]


def test_groups_beside_a_validation_split(tmp_path):
    frames(tmp_path)
    (tmp_path / "validation").symlink_to(tmp_path / "train")
    with pytest.warns(
        UserWarning, match=r"data.group=prefix has no effect: folder has a validation"
    ):
        load(tmp_path, group="prefix")


def test_groups_that_the_data_do_not_have(tmp_path):
    frames(tmp_path, series=2, of_each=2)
    with pytest.raises(
        ValueError, match=r"data.group: of files in folders it is folder, .*'track'"
    ):
        load(tmp_path, group="track")
    with pytest.raises(ValueError, match="group=folder: each of the 2 groups holds all images"):
        load(tmp_path, group="folder")


def test_neighbours_are_of_one_folder_and_class():
    paths = ["x/a/1.png", "x/a/2.png", "x/a/3.png", "x/b/1.png", "x/b/2.png"]
    pairs = find_pairs(paths, np.array([0, 0, 1, 1, 1]), paths, np.array([0, 0, 1, 1, 1]))
    assert sorted(zip(pairs.file.tolist(), pairs.neighbour.tolist(), strict=True)) == [
        (0, 1),
        (3, 4),
    ]


def test_what_counts_as_odd():
    assert Alike(0.5, 0.02, 400).is_odd  # the traffic signs
    assert not Alike(0.5, 0.4, 400).is_odd  # all pictures of a class look alike
    assert not Alike(0.05, 0.0, 400).is_odd
    flat = np.zeros((1, 4))
    assert correlation(flat, np.arange(4.0)[None]).tolist() == [0.0]
