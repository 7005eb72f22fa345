"""What the README shows runs as it stands there."""

import re
import shlex
from pathlib import Path

import pytest

from coe_core.support.command import parse

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_blocks_run(capsys):
    programs = blocks("python")
    assert programs
    for block in programs:
        exec(compile(block, "README.md", "exec"), {})
    assert "torch.Size([256, 10])" in capsys.readouterr().out


def shown(program: str) -> list[list[str]]:
    """The words of the program's commands."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    split = [shlex.split(line, comments=True) for line in lines if line.startswith(program)]
    return [words[1:] for words in split]


def test_commands_are_understood():
    from vision.commands.cli import parser

    assert len(shown("coe-vision")) >= 5
    for words in shown("coe-vision"):
        parse(parser(), words)


def test_a_misspelt_option_in_any_of_them_is_not(capsys):
    from vision.commands.cli import parser

    for words in shown("coe-vision"):
        with pytest.raises(SystemExit):
            parse(parser(), [*words, "--no-such-option"])
        assert "unrecognized arguments: --no-such-option" in capsys.readouterr().err


def test_make_targets_exist():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("sh")), flags=re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("path", re.findall(r"\]\(([\w./]+)\)", README))
def test_linked_files_exist(path):
    assert (Path(__file__).parents[2] / path).exists()
