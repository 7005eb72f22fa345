"""`coe-vision check`: every finding by its words, its status, through the command."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from vision.commands.cli import main


def picture(file, seed, size=(16, 16), mode="RGB", **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, **options)


@pytest.fixture
def root(tmp_path):
    """Three splits of two classes, of which nothing is to be said."""
    for s, split in enumerate(("train", "validation", "test")):
        for c, name in enumerate(("ant", "bee")):
            for i in range(12):
                picture(tmp_path / split / name / f"{i}.png", [s, c, i])
    return tmp_path


@pytest.fixture
def check(root, capsys):
    """Run the command on the folder; its status, and what it printed."""

    def run(*words):
        status = main(["check", str(root), *words])
        return status, capsys.readouterr().out

    return run


def test_nothing_to_say(check):
    assert check() == (
        0,
        "2 classes; images: train 24, validation 24, test 24\nformats: PNG 72\n"
        "width 16 to 16 px (middle 16), height 16 to 16 px (middle 16)\n0 wrong, 0 odd\n",
    )


def copy(root, ours, theirs):
    shutil.copyfile(root / ours, root / theirs)


def uneven(root):
    for i in range(130):
        picture(root / "train/ant" / f"more{i}.png", [9, i])


WRONG = [
    (
        lambda r: (r / "train/ant/0.png").write_bytes(b"nothing"),
        "1 of 24 images of train are unreadable, so training refuses the set: cannot read the image",
    ),
    (
        lambda r: copy(r, "train/ant/0.png", "test/ant/0.png"),
        "the same images in two splits, which makes figures too good: 1 of test are in train",
    ),
    (
        lambda r: copy(r, "train/ant/0.png", "train/bee/0.png"),
        "1 images have two labels: ",
    ),
    (lambda r: shutil.rmtree(r / "train/bee"), "class folders that train does not have: bee"),
    (
        lambda r: shutil.rmtree(r / "test/bee"),
        "all 12 images of test are of one class, 'ant'; at least two are needed",
    ),
    (lambda r: shutil.rmtree(r / "train"), "no folder train for the train split"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_what_is_wrong(root, check, spoil, message):
    spoil(root)
    status, said = check()
    assert status == 1
    (line,) = (line for line in said.splitlines() if line.startswith("WRONG: "))
    assert message in line


ODD = [
    (
        lambda r: copy(r, "train/ant/0.png", "train/ant/1.png"),
        "1 images are copies of another one of their split",
    ),
    (
        lambda r: [(r / "train/bee" / f"{i}.png").unlink() for i in range(3)],
        "1 of 2 classes have fewer than 10 training images: bee 9",
    ),
    (uneven, "classes are uneven: ant has 142 training images, bee 12"),
    (lambda r: shutil.rmtree(r / "test"), "no test split: figures come from the validation images"),
    (
        lambda r: picture(r / "train/ant/large.png", 1, (200, 200)),
        "the shorter sides differ 12.5-fold, from 16 to 200 px (middle 16)",
    ),
    (
        lambda r: picture(r / "train/ant/long.png", 1, (48, 16)),
        "1 images are at least 3 times as long as wide",
    ),
    (
        lambda r: picture(r / "train/ant/grey.png", 1, mode="L"),
        "pictures of 2 kinds (Pillow's modes RGB 72, L 1; L: ",
    ),
    (
        lambda r: picture(r / "train/ant/5.png", 1, format="JPEG"),
        "1 files are of another format than their ending says",
    ),
    (
        lambda r: Image.new("RGB", (16, 16)).save(r / "train/ant/black.png"),
        "1 images are of one colour",
    ),
    (
        lambda r: Image.new("RGB", (16, 16)).save(
            r / "train/ant/film.gif", save_all=True, append_images=[Image.new("RGB", (16, 16), 9)]
        ),
        "1 files hold several frames, of which the first counts",
    ),
    (
        lambda r: (r / "train/ant/notes.txt").write_text("x"),
        "left out 1 files: 1 with endings that",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "message"), ODD)
def test_what_is_odd(root, check, spoil, message):
    spoil(root)
    status, said = check()
    assert status == 0
    assert any(message in line for line in said.splitlines() if line.startswith("odd: "))
    assert "WRONG" not in said


def test_classes_of_one_image_cannot_be_held_out(root, check):
    shutil.rmtree(root / "validation")
    for name in ("ant", "bee"):
        for i in range(1, 12):
            (root / "train" / name / f"{i}.png").unlink()
    status, said = check()
    assert status == 1
    assert "WRONG: folder: 2 training images, one of each class: none can be held out" in said
    assert "images: train 2, test 24" in said  # the rest is told all the same


def test_two_spellings(root, check):
    for split in ("train", "validation", "test"):
        for i in range(10):
            picture(root / split / "Bee_" / f"{i}.png", [5, i, len(split)])
    assert "odd: 1 classes have two spellings: 'Bee_' and 'bee'; are they one?" in check()[1]


def test_neighbours(root, check):
    for name in ("ant", "bee"):
        for series in range(8):
            base = np.random.default_rng([ord(name[0]), series]).integers(0, 200, (16, 16, 3))
            for frame in range(6):
                pixels = (base + frame).astype(np.uint8)
                Image.fromarray(pixels).save(root / "train" / name / f"s{series}_{frame}.png")
    said = check()[1]
    assert "are nearly one picture" in said
    assert "see that no such series lies in two splits" in said
    shutil.rmtree(root / "validation")
    assert "set data.group, or a part held out at random holds near-copies" in check()[1]
    assert "validation is cut by whole groups of prefix" in check("group=prefix")[1]


def test_a_table_tells_all_its_problems(root, capsys):
    file = root / "labels.csv"
    with open(file, "w", newline="") as table:
        writer = csv.writer(table)
        writer.writerows([["file", "label", "split"], ["train/ant/0.png", "ant", "train"]])
        writer.writerows([["train/bee/0.png", "bee", "train"], ["gone.png", "wasp", "test"]])
    assert main(["check", str(file)]) == 1
    said = capsys.readouterr().out
    assert said.count("WRONG: ") == 3
    assert "1 of 3 files are missing" in said
    assert "all 1 rows of test are of one class, 'wasp'" in said
    assert "1 classes of test have no rows in train: wasp" in said
    assert said.endswith("3 wrong, 0 odd\n")


def test_what_cannot_be_checked(root, capsys, tmp_path):
    assert main(["check", str(tmp_path / "gone")]) == 1
    assert "WRONG: data.path: there is no folder" in capsys.readouterr().out
    assert main(["check", str(root), "gruop=track"]) == 2
    assert "unknown key 'gruop'; nearest: group" in capsys.readouterr().err
    assert main(["check", str(root), "name=digits"]) == 2
    assert "digits comes whole: there are no files to check" in capsys.readouterr().err
