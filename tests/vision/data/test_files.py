"""Which files are images, by one rule for training and prediction; links, special files, odd names."""

import os
import socket
import warnings

import pytest
from PIL import Image

from vision.data import files
from vision.data.files import find_images, image_formats, open_regular, printable
from vision.data.load import load_data
from vision.data.preprocess import Preprocess
from vision.data.section import Data
from vision.prediction.inputs import find_inputs


def picture(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (colour, colour, colour)).save(path, "png")
    return path


def found(*places):
    """Names below the first place, without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return names(*places)


def names(*places):
    return [os.path.relpath(path, places[0]) for path in find_images(places).paths]


def test_order_hidden_files_and_endings_in_any_case(tmp_path):
    for name in (
        "b/z.png",
        "b/a.JPG",
        "b/c/a.webp",
        "b-c/a.jfif",
        "a.Avif",
        ".h/a.png",
        "b/.a.png",
    ):
        picture(tmp_path / name)
    expected = ["a.Avif", "b/a.JPG", "b/z.png", "b-c/a.jfif", "b/c/a.webp"]
    assert found(tmp_path) == expected  # as sorted(os.walk()) has them: "-" is before "/"


def test_places_are_told_apart_and_files_taken_as_given(tmp_path):
    first, second = picture(tmp_path / "a/1.png"), picture(tmp_path / "b/2.png")
    odd = picture(tmp_path / "c/odd.ending")
    images = find_images([tmp_path / "b", odd, tmp_path / "a"])
    assert images.paths == [str(second), str(odd), str(first)]
    assert images.places == [0, 1, 2]


def test_links_that_go_round_take_each_file_once(tmp_path):
    for name in ("a", "b"):
        for number in range(3):
            picture(tmp_path / name / f"{number}.png")
        (tmp_path / name / "up").symlink_to(tmp_path)
        (tmp_path / name / "self").symlink_to(tmp_path / name)
        (tmp_path / name / "round").symlink_to(tmp_path / name / "round")
    (tmp_path / "a" / "copy.png").symlink_to(tmp_path / "b" / "0.png")
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nothing.png")
    with pytest.warns(UserWarning, match="3 links to nothing") as warned:
        images = names(tmp_path / "a", tmp_path / "b")
    assert images == ["0.png", "1.png", "2.png", "../b/0.png", "../b/1.png", "../b/2.png"]
    # Nothing: two links that go round to themselves, and one to a lost file.
    assert len(warned) == 1
    assert "links to what was found already" in str(warned[0].message)


def test_what_only_a_link_leads_to_is_taken(tmp_path):
    outside = tmp_path / "outside"
    picture(outside / "1.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(outside)
    (tmp_path / "in" / "one.png").symlink_to(picture(tmp_path / "single.png"))
    assert found(tmp_path / "in") == ["one.png", "linked/1.png"]


def test_a_loop_in_training_counts_every_picture_once(tmp_path):
    for name in ("a", "b"):
        for number in range(10):
            picture(tmp_path / "train" / name / f"{number}.png", number)
        (tmp_path / "train" / name / "again").symlink_to(tmp_path / "train")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = load_data(Data(name="folder", path=str(tmp_path), channels=3))
        assert len(data.train) + len(data.validation) == 20
        (tmp_path / "train" / "c").symlink_to(tmp_path / "train" / "a")
        with pytest.raises(ValueError, match="class folders a and c are one folder"):
            load_data(Data(name="folder", path=str(tmp_path), channels=3))


def test_the_rest_is_counted_aloud(tmp_path, monkeypatch):
    known = files.image_formats()
    without = [ending for ending in known.endings if ending not in (".heic", ".heif")]
    monkeypatch.setattr(files, "image_formats", lambda: known._replace(endings=tuple(without)))
    picture(tmp_path / "a.png")
    for name in ("b.heic", "c.heic", "notes.txt", "README", "Thumbs.db"):
        (tmp_path / name).touch()
    expected = r"left out 5 files: 5 with endings .* \(.heic 2, .*no ending 1.*for .heic install pillow-heif"
    with pytest.warns(UserWarning, match=expected):
        assert names(tmp_path) == ["a.png"]


def test_images_outside_class_folders_are_counted_aloud(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png", "loose.png"):
        picture(tmp_path / "train" / name)
    with pytest.warns(UserWarning, match=r"left out 1 images that are in no class folder \(loose"):
        load_data(Data(name="folder", path=str(tmp_path), channels=3))


def test_special_files_are_left_out_and_never_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    os.mkfifo("fifo.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        os.symlink("/dev/zero", "device.png")
        with pytest.warns(UserWarning, match=r"left out 3 files: 3 FIFOs, sockets or devices"):
            assert names(".") == ["a.png"]
        for name, kind in (("fifo", "FIFO"), ("socket", "socket"), ("device", "device")):
            with pytest.raises(ValueError, match=f"{name}.png is a {kind}, not a regular file"):
                open_regular(f"{name}.png")
    with pytest.raises(ValueError, match="is a folder"):
        open_regular(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    picture(tmp_path / "in" / "closed" / "a.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"cannot list the folder .*closed: Permission denied"):
        find_images([tmp_path])
    with pytest.raises(ValueError, match="gone: does not exist"):
        find_images([tmp_path / "gone"])


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"two\rlines\n.png", "日本 ['x'].png".encode()])
def test_any_name_of_a_file_is_read_and_printed(tmp_path, name):
    where = os.path.join(os.fsencode(tmp_path), name)
    os.rename(picture(tmp_path / "a.png"), where)
    (path,) = find_images([tmp_path]).paths
    assert os.fsencode(path) == where
    preprocess = Data(channels=3).preprocess()
    assert preprocess.load(path).shape == (3, 8, 8)
    os.truncate(path, 20)
    with pytest.raises(ValueError.__base__, match="cannot read the image") as error:
        preprocess.load(path)
    str(error.value).encode("utf-8")
    assert str(error.value).isprintable()
    assert printable(path).isprintable()


def test_predict_and_train_find_the_same(tmp_path):
    for name in ("x/a.png", "x/.b.png", "x/c.jfif", "y/d.GIF"):
        picture(tmp_path / "train" / name)
    (tmp_path / "train" / "y" / "loop").symlink_to(tmp_path / "train")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predicted = find_inputs([str(tmp_path / "train")])
        trained = find_images([tmp_path / "train" / name for name in "xy"]).paths
    assert [found.name for found in predicted] == trained
    assert len(trained) == 3


def test_only_formats_that_are_meant():
    assert {"EPS", "PDF", "WMF", "FITS", "HDF5", "ICNS", "GBR"}.isdisjoint(image_formats().formats)


@pytest.mark.parametrize("ending", ["heic", "avif"])
def test_photographs_of_telephones(tmp_path, ending):
    """HEIC with its plug-in, which the extra heif brings; AVIF where Pillow has it."""
    if ending == "heic":
        pytest.importorskip("pillow_heif")
    image_formats.cache_clear()
    if f".{ending}" not in image_formats().endings:
        pytest.skip(f"this Pillow has no {ending}")
    Image.new("RGB", (64, 48), (200, 30, 40)).save(tmp_path / f"a.{ending}")
    assert names(tmp_path) == [f"a.{ending}"]
    pixels = Preprocess(8, 3, (0.0,) * 3, (1.0,) * 3).load(tmp_path / f"a.{ending}")
    red, green, blue = pixels.float().mean((1, 2)).tolist()
    assert red > 190
    assert max(green, blue) < 50
