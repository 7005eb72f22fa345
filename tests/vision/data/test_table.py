"""Tables of labels: how they are read, and every refusal by its message."""

import csv
import itertools
import re
import warnings

import numpy as np
import pytest
from PIL import Image

from vision.data.columns import Columns
from vision.data.load import load_data
from vision.data.section import Data
from vision.data.table import read_labels, table_problems, table_source
from vision.data.table_file import read_columns


@pytest.fixture
def images(tmp_path):
    """Eight pictures of noise in a folder of their own."""
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(8):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path


def rows(labels="abababab", splits=("train",) * 4 + ("test",) * 4):
    return [
        {"file": f"pictures/{i}.png", "label": label, "split": split}
        for i, (label, split) in enumerate(zip(labels, splits, strict=True))
    ]


def write(folder, lines, name="labels.csv", delimiter=",", encoding="utf-8"):
    with open(folder / name, "w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(lines[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(lines)
    return folder / name


def problems(file, **options):
    return table_problems(read_labels(file, **options))


# What is read


def test_a_table_by_hand(images, capsys):
    file = write(images, rows())
    data = load_data(Data(name="table", path=str(file), size=8, channels=3))
    assert data.classes == ["a", "b"]
    assert [len(s) for s in (data.train, data.validation, data.test)] == [2, 2, 4]
    assert data.test.targets.tolist() == [0, 1, 0, 1]
    assert data.test.paths == [str(images / "pictures" / f"{i}.png") for i in range(4, 8)]
    said = capsys.readouterr().err
    assert "file from file, label from label, split from split; train 4, test 4 images" in said


def test_a_folder_recipe_takes_a_table(images):
    file = write(images, rows())
    data = load_data(Data(name="folder", path=str(file), size=8, channels=3))
    assert data.provenance["num_test"] == 4


@pytest.mark.parametrize(
    ("delimiter", "name", "encoding", "note"),
    [
        (",", "labels.csv", "utf-8", ""),
        ("\t", "labels.tsv", "utf-8", ""),
        (";", "labels.csv", "utf-8", "semicolons"),
        ("\t", "labels.csv", "utf-16", "tabs"),  # a spreadsheet's "Unicode text"
        (",", "labels.tsv", "utf-8-sig", "commas"),
        (",", "LABELS.CSV", "utf-8-sig", ""),
    ],
)
def test_delimiters_and_marks(images, delimiter, name, encoding, note):
    file = write(images, rows("äbäbäbäb"), name, delimiter, encoding)
    table = read_columns(file)
    assert list(table.columns) == ["file", "label", "split"]
    assert table.columns["label"][0] == "ä"
    assert (note in table.note) if note else not table.note


def test_columns_of_usual_names(images):
    lines = [
        {"Image Path": f"pictures/{i}.png", "Species": "xy"[i % 2], "Patient-ID": f"p{i}"}
        for i in range(8)
    ]
    table = read_labels(write(images, lines))
    assert table.splits is None
    assert table.group_column == "Patient-ID"
    assert "file from Image Path, label from Species, group from Patient-ID" in table.said
    assert read_labels(images / "labels.csv", group="off").groups is None


def test_columns_that_are_named(images):
    lines = [{"a": f"{i}.png", "b": "xy"[i % 2], "c": "ignored"} for i in range(8)]
    file = write(images, lines)
    table = read_labels(file, Columns("a", "b"), images=images / "pictures")
    assert problems(file, columns=Columns("a", "b"), images=images / "pictures") == []
    assert table.files[3] == str(images / "pictures/3.png")
    with pytest.raises(FileNotFoundError, match=r"data.images: there is no folder .*gone"):
        read_labels(file, Columns("a", "b"), images=images / "gone")


def test_numbers_are_ordered_by_size_and_lose_their_point(images):
    table = read_labels(write(images, rows(["10.0", "9.0"] * 4)))
    assert table_source(table).classes == ["9", "10"]


def test_rows_that_name_a_file_again_count_once(images):
    file = write(images, [*rows(), rows()[0]])
    with pytest.warns(UserWarning, match="1 rows name a file again, with the same label"):
        source = table_source(read_labels(file))
    assert len(source.train.targets) == 4


def test_classes_absent_from_a_split_are_told(images):
    lines = rows("abcabcab")
    with pytest.warns(
        UserWarning, match="no images of 1 of 3 classes in test: a; figures on it say nothing"
    ):
        table_source(read_labels(write(images, [line for line in lines if line != lines[6]])))


# Refusals


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "labels.csv is empty: no names of columns, no rows"),
        (b"\n\n", "is empty"),
        (b"file,label\n", r"names its columns \(file, label\) but has no rows"),
        (b"file\na.png\n", "'file', names one column only; .* separated by commas, tabs"),
        (b"a.png,cat\nb.png,dog\n", r"names no columns but holds a file \('a.png'\); put a line"),
        (b"file,label,label\n1,2,3\n", "1 names stand for two columns: 'label'; rename one"),
        (b"file,label\na.png,x,y\nb.png,z\n", "1 rows have another .* line 2 with 3; put cells"),
        (b'file,label\n"a.png,x\n', "line 2: unexpected end of data"),
        (b"file,label\na\xff.png,x\n", "not UTF-8 at byte 12; save it as UTF-8"),
        (b"file,label\na\x00.png,x\n", "holds bytes of 0, so it is no text"),
        (
            b"foo,label\na.png,x\n",
            r"no column for the names .*data.columns.file; it has foo, label",
        ),
        (
            b"file,foo\na.png,x\n",
            r"no column for the classes .*data.columns.label; it has file, foo",
        ),
    ],
)
def test_files_that_are_no_tables(tmp_path, content, message):
    file = tmp_path / "labels.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_labels(file)


def test_what_is_no_file_of_a_table(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.path: there is no table .*gone.csv"):
        read_labels(tmp_path / "gone.csv")
    with pytest.raises(ValueError, match="is a folder, not a table; give the file"):
        read_labels(tmp_path)
    (tmp_path / "labels.xlsx").write_text("x")
    with pytest.raises(ValueError, match=r"a table ends in .csv, .tsv, .parquet, .pq; save it"):
        read_labels(tmp_path / "labels.xlsx")
    with pytest.raises(ValueError, match="table needs the folder it lies in; none given"):
        load_data(Data(name="table"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": Columns(label="lable")}, "columns.label: .* 'lable'; nearest: label; it has"),
        (
            {"columns": Columns(split="fold")},
            "no column 'fold'; nearest: file; it has file, label, split",
        ),
        ({"group": "track"}, "data.group: .*labels.csv has no column 'track'"),
    ],
)
def test_unknown_columns(images, options, message):
    with pytest.raises(ValueError, match=message):
        read_labels(write(images, rows()), **options)


BAD = [
    (lambda r: r[0].update(label=""), "1 of 8 rows have no label, the first is row 1; fill"),
    (lambda r: r[7].update(file=" "), "1 of 8 rows have no file, the first is row 8"),
    (lambda r: r[2].update(split=""), "1 of 8 rows have no split"),
    (
        lambda r: r[3].update(label="3"),
        r"labels mix numbers \(1 rows, such as 3\) and texts \(7 rows, such as 'a'\); name all",
    ),
    (
        lambda r: [x.update(label=f"0.{i}") for i, x in enumerate(r)],
        "8 labels are no whole numbers",
    ),
    (lambda r: r[0].update(label="a\rb"), r"1 labels cannot be printed: 'a\\rb'"),
    (lambda r: r[0].update(split="fold1"), "1 names of splits are unknown: 'fold1'; known: train,"),
    (
        lambda r: [x.update(file=f"gone{i}.png") for i, x in enumerate(r[:5])],
        r"5 of 8 files are missing: .*gone0.png, .*gone1.png, .*gone2.png, \.\.\.; put them there",
    ),
    (lambda r: [x.update(file="x") for x in r[:1]], "the names have no endings: write them with"),
    (lambda r: r[0].update(file="https://a/b.png"), "files are read from folders, not fetched"),
    (
        lambda r: r.append({**r[0], "label": "b"}),
        r"1 rows name a file again with other labels, the first .*0.png \(a and b\); keep one",
    ),
    (
        lambda r: r.append({**r[0], "split": "test"}),
        r"1 rows name a file again with other splits, the first .*0.png \(train and test\)",
    ),
    (
        lambda r: [x.update(label="a") for x in r[4:]],
        "all 4 rows of test are of one class, 'a'; at least two are needed",
    ),
    (
        lambda r: [x.update(split="test") for x in r],
        "no row is of the split train; there is nothing",
    ),
    (
        lambda r: r[7].update(label="c"),
        "1 classes of test have no rows in train: c; nothing can be learned of them",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), BAD)
def test_rows_that_cannot_be_learned_from(images, spoil, message):
    lines = rows()
    spoil(lines)
    (problem,) = problems(write(images, lines))
    assert re.search(message, problem)
    assert "\n" not in problem


def test_a_group_in_two_splits(images):
    lines = [{**row, "track": f"t{i % 4}"} for i, row in enumerate(rows())]
    file = write(images, lines)
    (problem,) = problems(file)
    assert "4 of 4 groups of track lie in two splits, the first t0 in test, train; move" in problem
    assert problems(file, group="off") == []
    for line in lines[4:]:
        line["track"] = ""  # each a group of its own
    assert problems(write(images, lines)) == []


def test_one_problem_is_raised_and_the_others_counted(images):
    lines = rows()
    lines[0]["file"], lines[7]["label"] = "gone.png", "c"
    with pytest.raises(ValueError, match=r"1 of 8 files are missing: .*\(and 1 more: coe-vision"):
        table_source(read_labels(write(images, lines)))


def test_every_kind_of_split_is_known(images):
    names = ["Training", "VAL", "dev", "tst", "TEST", "valid", "train", "trn"]
    source = table_source(read_labels(write(images, rows("aabbaaab", splits=names))))
    assert source.validation is not None
    assert source.test is not None
    assert [len(s.targets) for s in (source.train, source.validation, source.test)] == [3, 3, 2]


# Parquet


def test_parquet_without_pyarrow(images, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (images / "labels.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"needs the package pyarrow: pip install .*\[tables\]"):
        read_columns(images / "labels.parquet")


def test_parquet(images):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    lines = rows()
    columns = {key: [line[key] for line in lines] for key in lines[0]}
    columns["label"] = [i % 2 for i in range(8)]
    columns["boxes"] = [[1, 2]] * 8
    file = images / "labels.parquet"
    parquet.write_table(pyarrow.table(columns), file)
    table = read_labels(file)
    assert table_source(table).classes == ["0", "1"]
    assert "columns that hold no texts or numbers are left out: boxes" in table.said
    content = file.read_bytes()
    for damaged in (content[:100], content[:-100] + bytes(100), b"PAR1"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged Parquet file .*; write it again"):
            read_labels(file)


# Held out by whole groups


def test_the_held_out_part_is_whole_groups(images):
    lines = [
        {"file": f"pictures/{i}.png", "label": "ab"[i // 4], "track": f"t{i // 2}"}
        for i in range(8)
    ]
    file = write(images, lines)
    for seed in range(5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no test split
            data = load_data(
                Data(name="table", path=str(file), channels=3, validation=0.5, split_seed=seed)
            )
        parts = [
            {lines[int(path[-5])]["track"] for path in images.paths}
            for images in (data.train, data.validation)
        ]
        assert not parts[0] & parts[1]
        assert data.validation.targets.tolist() == [0, 0, 1, 1]
        assert "0.5 of train, 2 of 4 whole groups of track" in data.provenance["held_out"]


def test_groups_that_cannot_be_held_out(images):
    lines = [{"file": f"pictures/{i}.png", "label": "ab"[i // 4]} for i in range(8)]
    lines = [{**line, "track": line["label"]} for line in lines]
    file = write(images, lines)
    with pytest.raises(
        ValueError, match=r"data.group=track: each of the 2 groups holds all images"
    ):
        load_data(Data(name="table", path=str(file), channels=3))


def test_columns_and_groups_in_a_recipe(images):
    from vision.recipe import load_recipe

    recipe = load_recipe(
        "traffic_signs", ["data.path=labels.csv", "data.columns.label=name", "data.group=track"]
    )
    assert recipe.data.columns == Columns(label="name")
    with pytest.raises(
        ValueError, match=r"unknown key 'data.columns.lable'; nearest: data.columns.label"
    ):
        load_recipe("traffic_signs", ["data.columns.lable=name"])


def test_no_two_usual_names_are_one():
    from vision.data import columns

    names = [columns.FILE_COLUMNS, columns.LABEL_COLUMNS, columns.SPLIT_COLUMNS]
    names.append(columns.GROUP_COLUMNS)
    for ours, theirs in itertools.combinations(names, 2):
        assert not set(ours) & set(theirs)
