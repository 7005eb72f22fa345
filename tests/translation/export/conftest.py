"""A small team, exported once with the command."""

import pytest

from translation.commands.cli import main


@pytest.fixture(scope="session")
def points(tmp_path_factory):
    """A file as calibrate writes it."""
    from coe_core import OperatingPoint, StoredPoints
    from translation.evaluation.calibrate import save_points

    path = tmp_path_factory.mktemp("points") / "thresholds.json"
    stored = {"CoE": []}
    for name, threshold in (("some", 0.14), ("none", float("inf"))):
        stored["CoE"].append(
            OperatingPoint(
                name, threshold, "best", None, 0.5, 9.0, 1e5, "macs", 9, "x", "2026-01-01"
            )
        )
    save_points(path, StoredPoints(stored, {}))
    return path


@pytest.fixture(scope="session")
def exported(tmp_path_factory, team, corpus, points):
    """Folder of the export, and what the command said."""
    from contextlib import redirect_stdout
    from io import StringIO

    folder, said = tmp_path_factory.mktemp("export") / "team", StringIO()
    words = ("export", team / "checkpoint_last.pt", corpus.binary, "--points", points)
    more = ("--at", "some", "--out", folder, "--beam", "1", "--subset", "test")
    with redirect_stdout(said):
        assert main([str(word) for word in (*words, *more)]) == 0
    return folder, said.getvalue()
