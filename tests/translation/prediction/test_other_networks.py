"""What a run cannot translate or export: networks of another recipe, an ensemble."""

import re
import shutil

import pytest

from translation.prediction.translator import Translator


def test_an_ensemble_is_not_exported(trained_run, monkeypatch):
    from translation.export.export import ExportError
    from translation.prediction.exporting import system_of

    both = [trained_run / f"networks/{name}-alone.pt" for name in ("expert", "expert")]
    engine = Translator(trained_run, device="cpu").engine
    monkeypatch.setitem(engine.controls, "seeds", both)
    with pytest.raises(
        ExportError, match="ensemble:seeds averages the probabilities of 2 networks"
    ):
        system_of(engine, "ensemble:seeds")


def test_a_checkpoint_of_another_recipe(trained_run, team, plain, corpus, said, tmp_path):
    """One line, whichever of a run's networks it stands in place of."""
    folder, text = tmp_path / "run", corpus.text / "test.de"
    shutil.copytree(trained_run, folder)
    shutil.copyfile(plain, folder / "networks/expert-alone.pt")
    status, _, error = said("translate", folder, text, "--system", "single:expert-alone")
    assert status == 2
    assert re.fullmatch(
        r"coe-translation translate: \S+expert-alone.pt is of another recipe: its "
        r"encoder.embed_tokens.weight is \[\d+, 64\], this vocabulary has \d+ pieces\n",
        error,
    )
    shutil.copyfile(team / "checkpoint_last.pt", folder / "networks/team.pt")
    for command in (("translate", folder, text), ("export", folder)):
        status, _, error = said(*command)
        assert status == 2
        assert "the source dictionary does not match the checkpoint: it has " in error
        assert error.count("\n") == 1
    shutil.copyfile(team / "checkpoint_last.pt", folder / "networks/expert-alone.pt")
    shutil.copyfile(trained_run / "networks/team.pt", folder / "networks/team.pt")
    status, _, error = said("translate", folder, text, "--system", "single:expert-alone")
    assert (status, "dictionary does not match the checkpoint" in error) == (2, True)
