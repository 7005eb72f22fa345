"""What docs/imagenet.md shows is understood by the commands, and its table is that of the recipes."""

import re
import shlex
from pathlib import Path

from coe_core.support.command import parse
from vision.commands.cli import parser
from vision.recipe import load_recipe
from vision.shipped import shipped_recipes

PAGE = (Path(__file__).parents[2] / "docs/imagenet.md").read_text(encoding="utf-8")


def commands():
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in (line for block in blocks for line in block.splitlines()):
        words = shlex.split(line, comments=True)
        start = words.index("coe-vision" if "coe-vision" in words else "vision") + 1
        yield words[:start], words[start:]


def test_commands_are_understood():
    launched = list(commands())
    assert len(launched) >= 10
    for launcher, words in launched:
        arguments = parse(parser(), words)
        name = getattr(arguments, "recipe", None) or arguments.source
        assert load_recipe(name, arguments.overrides)
        assert launcher[0] in ("coe-vision", "torchrun", "srun")


def test_torchrun_understands_its_part():
    from torch.distributed.run import get_args_parser

    lines = [launcher for launcher, _ in commands() if launcher[0] == "torchrun"]
    assert len(lines) >= 3
    for launcher in lines:
        parsed = get_args_parser().parse_args([*launcher[1:-2], "-m", "vision"])
        assert int(parsed.nproc_per_node) == 8


def test_every_recipe_is_in_the_table_with_its_budget():
    names = [name for name in shipped_recipes() if name.startswith("imagenet/")]
    assert len(names) >= 5
    for name in names:
        budget = load_recipe(name).budget
        at = f" at {budget.exit_rate:.0%} exits" * (budget.exit_rate > 0)
        assert re.search(rf"^\| `{name}` \|.*\| {budget.mmacs:g}{at} \|$", PAGE, re.MULTILINE), name
