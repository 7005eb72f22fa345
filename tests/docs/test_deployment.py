"""What docs/deployment.md shows is understood by the commands."""

import re
import shlex
from pathlib import Path

from coe_core.support.aims import parse_size

PAGE = (Path(__file__).parents[2] / "docs/deployment.md").read_text(encoding="utf-8")


def test_commands_are_understood():
    from vision.commands.cli import parser

    blocks = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("coe-vision")]
    assert len(commands) >= 5
    for line in commands:
        _, rest = parser().parse_known_args(shlex.split(line, comments=True)[1:])
        assert rest == []


def test_limits_are_the_defaults():
    from vision.commands.cli import parser

    serve = parser().parse_args(["serve", "run"])
    shown = re.findall(r"^\|.*\| `--([\w-]+) (\w+)` \|", PAGE, flags=re.MULTILINE)  # its table
    assert len(shown) == 6
    for name, value in shown:
        default = getattr(serve, name.replace("-", "_"))
        assert default == (parse_size(value) if value[-1].isalpha() else float(value))
