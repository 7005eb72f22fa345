"""The export to CTranslate2: what fairseq translates, with another engine.

Translations are compared without a beam. With one, CTranslate2 ranks hypotheses by probabilities of the
vocabulary without the end in first place, to which a network as little trained as this one gives a lot.
"""

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


def test_a_beam_finds_what_fairseq_would_find_or_as_good(exported, corpus, team):
    """Scored by fairseq, the translations of both engines are as likely."""
    from translation.export.export import load_team
    from translation.export.runner import Runner

    loaded = load_team(str(team / "checkpoint_last.pt"), str(corpus.binary))
    runner = Runner(exported[0], threads=1)
    task, words = loaded.task, [line.split() for line in lines(corpus) if line]
    from argparse import Namespace

    generator = task.plain_generator([loaded.model.delegator], Namespace(beam=5, max_len_b=20))
    task.load_dataset("test")
    dataset = task.dataset("test")
    batch = dataset.collater([dataset[row] for row in range(24) if row != 5])
    hypotheses = generator.generate([], batch)
    theirs = {
        number: task.target_dictionary.string(best[0]["tokens"]).split()
        for number, best in zip(batch["id"].tolist(), hypotheses, strict=True)
    }
    theirs = [theirs[number] for number in sorted(theirs)]
    search = {"beam": 5, "lenpen": 1.0, "max_length": 20, "nbest": 1}
    ours = [best for (best,) in runner._search(runner.delegator, words, search)]
    assert sum(own == other for own, other in zip(ours, theirs, strict=True)) >= 12
    own, other = (sum(runner.confidence(words, some)) / 23 for some in (ours, theirs))
    assert own == pytest.approx(other, rel=0.05)


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
    runner._search = lambda network, some, how: (
        ran.append(([*runner.experts, runner.delegator].index(network), len(some))),
        search(network, some, how),
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
        (("--at", "some"), "no threshold named 'some'; known: none: give --points"),
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


def test_what_cannot_be_exported(team, plain, corpus, exported, tmp_path, capsys):
    for checkpoint, folder, message in (
        (plain, tmp_path / "x", "its architecture is 'transformer_tiny'"),
        (team / "checkpoint_last.pt", exported[0], "exists and is not empty"),
    ):
        assert main(["export", str(checkpoint), str(corpus.binary), "--out", str(folder)]) != 0
        assert message in capsys.readouterr().err


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
