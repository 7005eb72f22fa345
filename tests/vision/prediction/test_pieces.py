"""Predictions in pieces: in this process and over a local Ray cluster of two workers."""

import json
import socket

import pyarrow.parquet
import pytest
from PIL import Image

from vision.errors import RunError
from vision.prediction.inputs import find_inputs
from vision.prediction.pieces import Job, planned, predict_piece


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten images, of which one cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(9):
        picture = Image.radial_gradient("L").rotate(40 * number).resize((8, 8))
        picture.save(folder / f"{number}.png")
    (folder / "9.png").write_bytes(b"nothing")
    return folder


@pytest.fixture
def job(trained, tmp_path):
    return Job(str(trained), str(tmp_path / "out"), str(tmp_path), "jsonl", threshold=0.5)


def rows(folder) -> list[dict]:
    """Results in the order of the images, from either format."""
    results = []
    for part in sorted(folder.glob("part-*")):
        if part.suffix == ".jsonl":
            results += map(json.loads, part.read_text().splitlines())
        else:
            results += pyarrow.parquet.read_table(part).to_pylist()
    return sorted(results, key=lambda row: row["file"])


def test_a_stopped_prediction_goes_on_where_it_was(job, images, tmp_path):
    inputs, predictor = find_inputs([str(images)]), job.predictor()
    budget = predictor.resolve(threshold=0.5)
    with planned(job, inputs, predictor, resume=False, size=4) as pieces:
        assert [len(piece.inputs) for piece in pieces] == [4, 4, 2]
        assert predict_piece(predictor, budget, pieces[1], job) == (1, 4, 0)
    with planned(job, inputs, predictor, resume=True, size=4) as pieces:
        assert [piece.number for piece in pieces] == [0, 2]
        done = [predict_piece(predictor, budget, piece, job) for piece in pieces]
    assert [item.unreadable for item in done] == [0, 1]
    with planned(job, inputs, predictor, resume=True, size=4) as pieces:
        assert pieces == []
    results = rows(tmp_path / "out")
    assert [row["file"] for row in results] == [item.name for item in inputs]
    expected = predictor([str(images / f"{number}.png") for number in range(9)], threshold=0.5)
    assert [row["label"] for row in results] == [*(item.label for item in expected), None]
    assert "cannot read the image" in results[-1]["error"]


def test_results_made_otherwise_are_left_as_they_are(job, images, trained, tmp_path):
    inputs, predictor = find_inputs([str(images)]), job.predictor()

    def refused(job=job, inputs=inputs, resume=True, size=4) -> str:
        with (
            pytest.raises(RunError) as error,
            planned(job, inputs, predictor, resume, size),
        ):
            pass
        return str(error.value).replace(f"{tmp_path}/", "")

    with planned(job, inputs, predictor, resume=False, size=4):
        pass
    assert (
        refused(resume=False)
        == "out holds predictions and is left as it is; --resume continues them"
    )
    end = "; give the same, or choose a new folder with --out"
    assert refused(job._replace(threshold=0.25)) == (
        f"out was begun with threshold 0.5, now 0.25{end}"
    )
    assert refused(inputs=inputs[1:]) == f"out was begun with other images (10, now 9){end}"
    assert refused(inputs=inputs[::-1]) == f"out was begun with other images (10, now 10){end}"
    assert (
        refused(job._replace(kind="parquet"))
        == f"out was begun with format 'jsonl', now 'parquet'{end}"
    )
    assert refused(size=5) == f"out was begun with images_in_a_piece 4, now 5{end}"
    (tmp_path / "out" / "plan.json").write_text("[")
    assert "out/plan.json is not JSON" in refused()
    (tmp_path / "out" / "plan.json").unlink()
    (tmp_path / "out" / "notes.txt").touch()
    assert refused() == "out holds other files; choose a new folder with --out"
    assert refused(job._replace(out=str(tmp_path / "no/where"))).startswith(
        "no/where cannot be made"
    )
    (tmp_path / "file").touch()
    assert refused(job._replace(out=str(tmp_path / "file"))).startswith(
        "file is a file; results in"
    )


def test_the_command_writes_parquet_without_workers(cli, trained, images, tmp_path, capsys):
    out = tmp_path / "out"
    call = ("predict", trained, images, "--format", "parquet", "--out", out)
    assert cli(*call) == 1
    assert f"10 predictions written to {out}" in capsys.readouterr().out
    assert cli(*call, "--resume") == 0
    assert f"0 predictions written to {out}, 10 were there already" in capsys.readouterr().out
    table = pyarrow.parquet.read_table(out / "part-000000.parquet")
    assert str(table.schema.field("macs").type) == "int64"
    assert table.column("label").null_count == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", "2"), "--workers, and --format parquet, write a folder: give --out FOLDER"),
        (("--workers", "2", "--out", "x", "--format", "csv"), "and --format parquet or jsonl"),
        (("--cluster", "auto"), "--cluster is where --workers run: give both"),
        (
            ("--format", "parquet", "--out", "x", "--cluster", "auto"),
            "--cluster is where --workers run: give both",
        ),
        (("--workers", "2", "--out", "x", "--compiled"), "--compiled does not go with --workers"),
    ],
)
def test_options_that_do_not_go_together(cli, trained, images, options, message, capsys):
    assert cli("predict", trained, images, *options) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def local_ray():
    """Ray's own way to start without anything outside; other tests' processes may be busy."""
    ray = pytest.importorskip("ray", reason="the optional extra `scale` is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield ray
        ray.shutdown()


@pytest.mark.slow
def test_a_cluster_of_two_answers_as_one_process(local_ray, cli, trained, images, tmp_path):
    from vision.prediction.cluster import cluster, predict_pieces

    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert cli("predict", trained, images, "--format", "parquet", "--out", alone) == 1
    job = Job(str(trained), str(shared), str(tmp_path), "parquet")
    inputs, predictor = find_inputs([str(images)]), job.predictor()
    with cluster(None, 2) as num_gpus:
        with planned(job, inputs, predictor, resume=False, size=3) as pieces:
            obstacles = [job.part(0), job.part(1)]
            for obstacle in obstacles:
                obstacle.mkdir()
            done = []
            with pytest.raises(
                RunError, match=r"2 of 4 pieces failed; the first: .*part-00000[01].* is a folder"
            ):
                done.extend(predict_pieces(pieces, job, 2, num_gpus))
            for obstacle in obstacles:
                obstacle.rmdir()
        with planned(job, inputs, predictor, resume=True, size=3) as pieces:
            assert list(predict_pieces(pieces[:1], job, 2, num_gpus)) == [(0, 3, 0)]
            budget = predictor.resolve()  # the other without a cluster: who takes a piece is free
            gone = job._replace(out=str(tmp_path / "gone"))
            with pytest.raises((RunError, OSError), match="there is no folder"):
                predict_piece(predictor, budget, pieces[1], gone)
            assert predict_piece(predictor, budget, pieces[1], job) == (1, 3, 0)
            assert len(pieces) == 2
    for result, wanted in zip(rows(shared), rows(alone), strict=True):
        for name, value in wanted.items():
            assert result[name] == (
                pytest.approx(value, abs=1e-5) if name in ("probability", "confidence") else value
            )


@pytest.mark.slow
def test_a_cluster_that_is_not_there(local_ray):
    from vision.prediction.cluster import cluster

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with (
        pytest.raises(RunError, match=f"no Ray cluster at 127.0.0.1:{port}: .*`ray start --head`"),
        cluster(f"127.0.0.1:{port}", 2),
    ):
        pass
