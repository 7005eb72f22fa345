"""What docs/translation.md shows is understood by the commands, and its tables say what is so."""

import re
import shlex
from itertools import takewhile
from pathlib import Path

import pytest
from fairseq import options

import translation
from coe_core.support.command import parse
from translation.commands.cli import COMMANDS, parser

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/translation.md").read_text(encoding="utf-8")
FAIRSEQ = {
    "fairseq-preprocess": options.get_preprocessing_parser,
    "fairseq-train": options.get_training_parser,
    "fairseq-generate": options.get_generation_parser,
    "fairseq-interactive": options.get_interactive_generation_parser,
}


def commands() -> list[list[str]]:
    """Words of every command line, without what the shell does with its input and output."""
    lines_of_words = []
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL):
        text = block.replace("\\\n", " ").replace("$(coe-translation user-dir)", "translation")
        for line in text.splitlines():
            for part in line.split(";"):
                words = shlex.split(part.strip().removeprefix("do "), comments=True)
                lines_of_words.append(list(takewhile(lambda word: word not in "<>", words)))
    return [words for words in lines_of_words if words]


def by_fairseq(name: str, words: list[str]) -> None:
    translation.register()
    words = [str(ROOT / word) if word == "translation" else word for word in words]
    parser = FAIRSEQ[name]()
    if name == "fairseq-preprocess":
        parser.parse_args(words)
    else:
        options.parse_args_and_arch(parser, input_args=words)


def test_commands_are_understood():
    seen = set()
    for name, *words in commands():
        if name == "coe-translation":
            arguments = parse(parser(), words)
            seen.add(arguments.name)
            if arguments.name == "decode":
                of_fairseq = [arguments.data, "--path", arguments.path, *arguments.more]
                by_fairseq("fairseq-generate", of_fairseq)
        elif name in FAIRSEQ:
            seen.add(name)
            by_fairseq(name, words)
    ours = {command.name for command in COMMANDS}
    assert seen == (ours | set(FAIRSEQ)) - {"user-dir"}  # it stands inside other commands


def rows(title: str) -> list[list[str]]:
    """Cells of the table whose first title is this."""
    lines = PAGE[PAGE.index(f"| {title} |") :].splitlines()[2:]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in takewhile(lambda line: line.startswith("|"), lines)
    ]


def test_options_and_defaults_are_those_of_the_code():
    from translation.plugin.criterion import CoELabelSmoothedCrossEntropyConfig as Criterion
    from translation.plugin.model import CoETransformerConfig as Model

    defaults = {**vars(Model()), **vars(Criterion())}
    checked = 0
    for names, shown, _ in rows("option"):
        given = [name.removeprefix("--").replace("-", "_") for name in names.split("`")[1::2]]
        values = [value.split()[0] for value in shown.split(", ")]
        for name, value in zip(given, values, strict=False):
            if name in defaults and defaults[name] is not None:
                own = defaults[name]
                own = {True: "on", False: "off"}[own] if isinstance(own, bool) else own
                assert value == (f"{own:g}" if isinstance(own, (int, float)) else str(own)), name
                checked += 1
    assert checked == 15


@pytest.mark.parametrize("name", [row[0].strip("`") for row in rows("architecture")])
def test_architectures(name):
    from translation.plugin.model import PRESETS

    width, layers = next(row[2] for row in rows("architecture") if row[0] == f"`{name}`").split(",")
    sizes = PRESETS[name]
    assert int(width) == sizes["delegator_embed_dim"]
    assert layers.split()[0] == "+".join(
        str(sizes[f"delegator_{side}_layers"]) for side in ("encoder", "decoder")
    )
