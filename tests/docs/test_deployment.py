"""What docs/deployment.md shows is understood by the commands."""

import re
import shlex
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs/deployment.md").read_text(encoding="utf-8")


def test_commands_are_understood():
    from vision.commands.cli import _parser

    blocks = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("coe-vision")]
    assert len(commands) >= 5
    for line in commands:
        _, rest = _parser().parse_known_args(shlex.split(line, comments=True)[1:])
        assert rest == []


def test_limits_are_the_defaults():
    from vision.commands.cli import _parser

    serve = _parser().parse_args(["serve", "run"])
    shown = re.findall(r"^\|.*\| `--([\w-]+) (\w+)` \|", PAGE, flags=re.MULTILINE)  # its table
    assert len(shown) == 4
    for name, value in shown:
        default = getattr(serve, name.replace("-", "_"))
        assert str(default) in (value, f"{value}.0", str(10 * 2**20 if value == "10M" else None))
