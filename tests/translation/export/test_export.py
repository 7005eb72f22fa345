"""The export to CTranslate2: what fairseq translates, with another engine."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest

from translation.commands.cli import main


def lines(corpus):
    return (corpus.text / "test.de").read_text(encoding="utf-8").splitlines()


def test_the_command_compares_itself_with_fairseq(exported):
    folder, said = exported
    assert "beside fairseq on 24 sentences of test:" in said
    assert "export: 24 of 24 take the same route" in said
    assert "24 have the same answer, confidences differ by at most" in said
    assert float(said.split(" (median)")[0].split()[-1]) < 1e-5
    scores = [line.split()[2] for line in said.splitlines() if " BLEU " in line]
    assert len(scores) == 2
    assert scores[0] == scores[1]
    assert {path.name for path in folder.iterdir()} == {
        *("delegator", "expert_0", "expert_1", "selection", "routing.json", "runner.py")
    }
    assert [path.name for path in folder.parent.iterdir()] == ["team"]
    routing = json.loads((folder / "routing.json").read_text())
    assert (routing["format"], routing["task"]) == (2, "translation")
    assert set(routing["files"]) == {
        *(
            f"{name}/{file}"
            for name in ("delegator", "expert_0", "expert_1", "selection")
            for file in ("config.json", "model.bin", "shared_vocabulary.json")
        ),
        "selection/head.npz",
    } - {"selection/shared_vocabulary.json"} | {"selection/vocabulary.json"}


@pytest.mark.parametrize("threshold", [0.0, 0.14, float("inf")])
def test_the_runner_gives_what_fairseq_generate_prints(exported, corpus, generate, threshold):
    from translation.export.runner import Runner

    theirs = generate("--beam", "1", "--threshold", threshold)
    runner = Runner(exported[0], threads=1, batch_size=5)
    ours = runner(lines(corpus), threshold=threshold)
    assert [translated.text for translated in ours] == [
        theirs.table("D")[number][1] for number in range(24)
    ]
    for translated, (network, confidence) in zip(
        ours, (theirs.table("R")[number] for number in range(24)), strict=True
    ):
        assert translated.network == network
        assert translated.confidence == pytest.approx(float(confidence), abs=2e-4, nan_ok=True)


def test_a_beam_and_its_confidences(exported, corpus, team):
    from translation.export.runner import Runner
    from translation.prediction.translator import Translator

    theirs = Translator(team / "checkpoint_last.pt", data=corpus.binary, device="cpu")
    search = {"beam": 5, "max_len": 20, "threshold": 0.0}
    runner, text = Runner(exported[0], threads=1), lines(corpus)
    ours = runner(text, beam=5, max_length=20, threshold=0.0)
    pairs = list(zip(ours, theirs(text, **search), strict=True))
    same = [(own, other) for own, other in pairs if own.text == other.text]
    # A network as little trained as this one gives the end in first place a lot, and a search that counts
    # an empty hypothesis ends sooner: of a trained one 299 of 300 are the same.
    assert len(same) >= 8
    for own, other in same:
        assert own.confidence == pytest.approx(other.confidence, abs=1e-5)
    words, texts = [
        [text.split() for text in some if text] for some in (text, [own.text for own in ours])
    ]
    scored = runner.confidence(words, texts)
    assert scored == pytest.approx([own.confidence for own in ours if own.text], abs=1e-5)


def test_only_what_is_needed_runs_and_grouped_equals_one_by_one(exported, corpus):
    from translation.export.runner import Runner

    runner = Runner(exported[0], threads=1)
    text = lines(corpus)
    together = runner(text, at="some")
    alone = [runner([line], at="some")[0] for line in text]
    assert [(translated.text, translated.network) for translated in together] == [
        (translated.text, translated.network) for translated in alone
    ]
    ran = []
    search = runner._search
    runner._search = lambda network, some, how, scored=False: (
        ran.append(([*runner.experts, runner.delegator].index(network), len(some))),
        search(network, some, how, scored),
    )[1]
    assert [translated.text for translated in runner(text, at="some")] == [
        translated.text for translated in together
    ]
    counts = [sum(translated.network == f"expert-{j}" for translated in together) for j in range(2)]
    assert 0 < sum(counts) < 23
    wanted = [(2, 23), *((j, count) for j, count in enumerate(counts) if count)]
    assert ran == wanted  # the empty line runs nothing


@pytest.mark.process
def test_the_exported_file_alone(exported, corpus, generate, tmp_path):
    """In a folder of its own, by a Python that finds neither this package nor fairseq."""
    folder = tmp_path / "moved"
    shutil.copytree(exported[0], folder)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('torch', 'fairseq', 'translation', 'coe_core'): sys.modules[name] = None\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            folder / "runner.py",
            "--threshold",
            "0.14",
            "--routes",
            tmp_path / "routes",
        ],
        input="".join(f"{line}\n" for line in lines(corpus)),
        **{"capture_output": True, "text": True, "cwd": tmp_path},
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    theirs = generate("--beam", "1", "--threshold", "0.14")
    assert done.stdout.splitlines() == [theirs.table("D")[number][1] for number in range(24)]
    routes = [line.split("\t")[1] for line in (tmp_path / "routes").read_text().splitlines()]
    assert routes == [theirs.table("R")[number][0] for number in range(24)]
    assert "24 sentences" in done.stderr
    bad = subprocess.run(
        [sys.executable, folder / "runner.py"],
        input="eins Meter\nf\xfcnf Tage\n".encode("latin1"),
        capture_output=True,
    )
    assert bad.returncode == 2
    assert b"runner.py: line 2 is not UTF-8" in bad.stderr


def test_int8(exported, team, corpus, tmp_path, capsys):
    words = (
        "export",
        team / "checkpoint_last.pt",
        corpus.binary,
        "--int8",
        "--out",
        tmp_path / "x",
    )
    assert main([str(word) for word in (*words, "--check", "12")]) == 0
    assert "on 12 sentences of valid" in capsys.readouterr().out
    size = {
        folder: sum(path.stat().st_size for path in (folder / "expert_0").iterdir())
        for folder in (exported[0], tmp_path / "x")
    }
    assert size[tmp_path / "x"] < 0.5 * size[exported[0]]
    assert (
        json.loads((tmp_path / "x" / "routing.json").read_text())["experts"][0]["weights"] == "int8"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--at", "some"), "no operating point 'some'; stored: none; or give multiply-adds"),
        (("--sentencepiece", "missing.model"), "missing.model: no such file"),
        (("--points", "missing.json"), "missing.json: no such file; coe-translation calibrate"),
        (("--lenpen", "nan"), "--lenpen: must be in [-100, 100], got nan"),
        (("--beam", "1000000"), "--beam: must be at most 1000, got 1000000"),
        (("--max-len-b", "999999999"), "--max-len-b: must be at most 1000000, got 999999999"),
        (("--sentencepiece", "README.md"), "README.md: not a SentencePiece model"),
    ],
)
def test_wrong_exports(team, corpus, tmp_path, capsys, options, message):
    words = (
        "export",
        team / "checkpoint_last.pt",
        corpus.binary,
        "--out",
        tmp_path / "x",
        *options,
    )
    assert main([str(word) for word in words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("confidence", [3, -1e308, ["probability"], {"a": 1}, True])
def test_a_confidence_that_is_no_name(confidence):
    from coe_core import OperatingPoint
    from translation.export.export import confidence_of

    point = OperatingPoint("a", 0.5, "macs", 1.0, 0.5, 0.5, 1.0, "macs", 9, "valid", "2026-01-01")
    named = dataclasses.replace(point, name="b", fitted_with={"confidence": "probability"})
    wrong = dataclasses.replace(point, fitted_with={"confidence": confidence})
    assert confidence_of({"a": point, "b": named}, "log_probability") == "probability"
    with pytest.raises(ValueError, match=r"'a' is of the confidence .*, which is no name"):
        confidence_of({"b": named, "a": wrong}, "probability")


def test_what_cannot_be_exported(team, corpus, exported, tmp_path, capsys):
    last = team / "checkpoint_last.pt"
    for words, message in (
        ((last, corpus.binary, "--out", exported[0]), "exists and is not empty"),
        ((last, corpus.binary), "of a checkpoint say where the export goes: --out FOLDER"),
        ((exported[0],), "is an export already; give a run or a checkpoint"),
        ((tmp_path / "no", "--out", tmp_path / "x"), "no such run, export or checkpoint"),
    ):
        assert main(["export", *map(str, words)]) == 2
        assert message in capsys.readouterr().err


def test_a_plain_transformer(plain, corpus, tmp_path, said):
    from translation.prediction.translator import Translator

    out = tmp_path / "x"
    words = (plain, corpus.binary, "--out", out, "--beam", 1, "--subset", "test", "--max-len-b", 30)
    status, told, _ = said("export", *words)
    assert status == 0
    assert "exported single:checkpoint_last\n" in told
    assert "24 of 24 take the same route" in told
    assert {path.name for path in out.iterdir()} == {"network", "routing.json", "runner.py"}
    ours = Translator(out, device="cpu")(lines(corpus))
    theirs = Translator(plain, data=corpus.binary, device="cpu")(lines(corpus), beam=1, max_len=30)
    assert [(t.text, t.route) for t in ours] == [(t.text, t.route) for t in theirs]
    assert [t.confidence for t in ours] == pytest.approx([t.confidence for t in theirs], abs=1e-5)


def test_wrong_thresholds_and_sentences(exported):
    from translation.export.runner import Runner

    runner = Runner(exported[0], threads=1)
    with pytest.raises(ValueError, match="no operating point 'fast'; stored: some, none"):
        runner(["eins"], at="fast")
    with pytest.raises(ValueError, match="threshold must be at least 0, got -1"):
        runner(["eins"], threshold=-1)
    with pytest.raises(ValueError, match="sentence 2 has 2000 pieces, the networks take 1023"):
        runner(["eins", "eins " * 2000])
    assert runner.limit() == 0.14
    assert runner.limit("none") == float("inf")
    assert runner([]) == []
