"""The commands of docs/translation.md print what the page says: whole words, not only options that parse."""

import contextlib
import re
import shlex
import shutil
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from sacrebleu import corpus_bleu

from translation.commands.cli import main
from translation.corpora.vocabulary import Segmentation, encode_file, train_vocabulary

PAGE = (Path(__file__).parents[3] / "docs/translation.md").read_text(encoding="utf-8")


def command(name: str, *marks: str) -> list[str]:
    """Words of the first documented command of that name with all marks in it."""
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL):
        text = block.replace("\\\n", " ").replace("$(coe-translation user-dir)", "translation")
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == [name] and all(mark in line for mark in marks):
                return list(takewhile(lambda word: word not in "<>", words))
    raise AssertionError(f"no {name} with {marks} on the page")


@pytest.fixture(scope="module")
def work(corpus, team, shell, tmp_path_factory):
    """``text`` and ``work`` of the page: the corpus in pieces that are words with SentencePiece's mark."""
    folder = tmp_path_factory.mktemp("documented")
    shutil.copytree(corpus.text, folder / "text", ignore=shutil.ignore_patterns("bin"))
    (folder / "work/pieces").mkdir(parents=True)
    words = (corpus.binary / "dict.de.txt").read_text(encoding="utf-8").splitlines()
    pieces = tuple(f"▁{word.split()[0]}" for word in words)
    texts = [folder / f"text/train.{language}" for language in ("de", "en")]
    (folder / "letters").write_text("".join(f"{a}{b}\n" for a in "abcxyz" for b in "abcxyz"))
    texts.append(folder / "letters")
    how = Segmentation(user_symbols=pieces, soft_limit=True)
    train_vocabulary(texts, 200, folder / "work/joint.model", segmentation=how)
    for name in ("train", "valid", "test"):
        for language in ("de", "en"):
            text = folder / f"text/{name}.{language}"
            encode_file(folder / "work/joint.model", text, folder / f"work/pieces/{text.name}")
    (folder / "dict").write_text("".join(f"▁{word}\n" for word in words), encoding="utf-8")
    with contextlib.chdir(folder):
        options = command("fairseq-preprocess")[1:]
    places = [str(folder / word) if word.startswith("work/") else word for word in options]
    shell("fairseq-preprocess", *places, "--srcdict", folder / "dict")
    state = torch.load(team / "checkpoint_last.pt", weights_only=True)
    state[
        "task_state"
    ] = {}  # the same words with a mark: other dictionaries than it was trained with
    torch.save(state, folder / "work/team.pt")
    return folder


def in_place(words: list[str], folder: Path) -> list[str]:
    return [str(folder / word) if word.startswith(("work/", "text/")) else word for word in words]


def test_fairseq_interactive_prints_words(work, shell, generate):
    words = in_place(command("fairseq-interactive"), work)
    words[words.index("--threshold") + 1] = "0.14"
    typed = (work / "text/test.de").read_text(encoding="utf-8").splitlines()
    done = shell(*words, "--cpu", given="".join(f"{line}\n" for line in typed))
    wanted = generate("--threshold", "0.14", "--beam", "5").table("D")
    printed = done.table("D")
    assert {number: row[1] for number, row in printed.items()} == {
        number: row[1] for number, row in wanted.items()
    }
    assert sum(" " in row[1] for row in printed.values()) > 12
    assert not any("▁" in row[1] for row in printed.values())
    assert set(done.table("R")) == set(range(24))


def test_generate_decode_and_score_print_words(work, shell, generate, capsys):
    words = in_place(command("fairseq-generate"), work)
    done = shell(*words, "--cpu", "--max-len-b", "20")
    reference = (work / "text/test.en").read_text(encoding="utf-8").splitlines()
    targets = {number: row[0] for number, row in done.table("T").items()}
    assert targets == dict(enumerate(reference))
    (work / "work/generated").write_text(done.out, encoding="utf-8")
    assert main(in_place(command("coe-translation", "score work")[1:], work)) == 0
    bleu = float(capsys.readouterr().out.split("BLEU")[1].split()[0])
    plain = generate("--threshold", "0.6", "--beam", "5", "--max-len-b", "20").table("D")
    texts = [plain[number][1] for number in range(24)]
    assert bleu == round(corpus_bleu(texts, [reference]).score, 2) > 1
    decode = in_place(command("coe-translation", "decode", "valid")[1:], work)
    assert main([*decode, "--cpu", "--max-len-b", "20"]) == 0
    calibrate = in_place(command("coe-translation", "calibrate")[1:], work)
    calibrate[calibrate.index("latency=20")] = "latency=99%"
    capsys.readouterr()
    assert main(calibrate) == 0
    stored = in_place(command("fairseq-generate", "macs=60%"), work)
    table = shell(*stored, "--cpu", "--max-len-b", "20").table("R")
    assert set(table) == set(range(24))
