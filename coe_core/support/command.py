"""What a command line has in common: its parser, its exit status, its errors in one line.

Exit status: 0 done; 1 done in part (what failed was said); 2 what was asked cannot be done; 130 after
Ctrl-C; 128 + n after another signal n, a reader that went away (SIGPIPE) included.
"""

from __future__ import annotations

import argparse
import codecs
import difflib
import importlib
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import IO, Any, NamedTuple, NoReturn

from coe_core.errors import CoEError
from coe_core.support.faults import fault_of_library, one_line
from coe_core.support.memory import keep_freed_memory

DONE, IN_PART, REFUSED = 0, 1, 2
_formatted = warnings.formatwarning


class Interrupted(BaseException):
    """Work was stopped by a signal. Not a KeyboardInterrupt: Lightning would exit with status 1."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


class Parser(argparse.ArgumentParser):
    """argparse's, without abbreviated options; what is wrong is said in one line, without the usage."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message, re.DOTALL)
        if choice is not None:
            message += nearest(choice[1], re.findall(r"[\w-]+", choice[2]))
        if message.endswith("expected one argument"):
            message += " (one that begins with a dash is written --option=-VALUE)"
        self.exit(REFUSED, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")


class Command(NamedTuple):
    """One row of a table of commands."""

    name: str  # as it is typed
    module: str  # has add_options(parser) and run(arguments); loads nothing heavy when imported
    text: str  # one sentence
    function: str = ""  # of a module of several commands: add_FUNCTION_options and run_FUNCTION


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """ "; nearest: a, b" for a message about an unknown name; empty if nothing is near.

    Example:
        >>> nearest("resnet81", ["resnet18", "vgg11"])
        '; nearest: resnet18'
    """
    close = difflib.get_close_matches(
        name, [str(candidate) for candidate in known], n=count, cutoff=0.5
    )
    return f"; nearest: {', '.join(close)}" if close else ""


def build_parser(program: str, description: str, commands: Sequence[Command]) -> Parser:
    """The parser of a program with one subparser for each command.

    Args:
        program: as it is typed.
        description: of the program, one sentence.
        commands: its table.
    """
    parser = Parser(program, description=description)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and end")
    subparsers = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    for command in commands:
        module = importlib.import_module(command.module)
        added = subparsers.add_parser(
            command.name,
            help=command.text.replace("%", "%%"),
            description=command.text.replace("%", "%%"),
        )
        middle = f"{command.function}_" if command.function else ""
        getattr(module, f"add_{middle}options")(added)
        end = f"_{command.function}" if command.function else ""
        added.set_defaults(call=getattr(module, f"run{end}"), parser=added)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *values: Any, **named_values: Any) -> None:
        from coe_core.support.provenance import commit, toolkit_version

        at = commit()
        print(f"{parser.prog} {toolkit_version()}{f' ({at})' if at else ''}")
        parser.exit()


def run_command(
    program: str,
    description: str,
    commands: Sequence[Command],
    argv: Sequence[str] | None = None,
    prepare: Callable[[], None] = lambda: None,
    libraries: Collection[str] = (),
) -> int:
    """Parse, run, and return the exit status; what is wrong is said in one line on stderr.

    Words that no option takes go to ``overrides`` (those without a dash) or ``more`` (any), for commands that
    have one of them.

    Args:
        program: as it is typed.
        description: of the program, one sentence.
        commands: its table.
        argv: the words after the program; None: those of this process.
        prepare: called before the command runs, such as to quieten loggers.
        libraries: packages that raise whatever it is for what a user gave, see `fault_of_library`.
    """
    _open_standard_files()
    warnings.formatwarning = _warning_line
    # Threads that spin while they wait cost 10 to 100 times on a machine shared with other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded
    said = program
    try:
        arguments = parse(build_parser(program, description, commands), argv)
        said = f"{program} {arguments.name}"
        prepare()
        keep_freed_memory()
        status = arguments.call(arguments) or DONE
        sys.stdout.flush()
        return status
    except SystemExit as end:  # of argparse: help was shown, or what is wrong was said
        return end.code if isinstance(end.code, int) else DONE if end.code is None else REFUSED
    except BrokenPipeError:  # the reader, such as head, has seen enough
        _drop(sys.stdout)
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return _end(said, "interrupted", 128 + signal.SIGINT)
    except Interrupted as stopped:
        return _end(said, str(stopped), 128 + stopped.number)
    except (CoEError, ValueError, OSError) as error:
        return _end(said, one_line(error), REFUSED)
    except Exception as error:
        if _is_lack_of_memory(error):
            return _end(said, f"not enough memory: {one_line(error)[:200]}", REFUSED)
        if (fault := fault_of_library(error, libraries)) is None:
            raise
        return _end(said, fault, REFUSED)


def status_of(program: Callable[[], object]) -> int:
    """The exit status that Python would end with after this program; what it raises is shown on stderr.

    Example:
        >>> status_of(lambda: None), status_of(lambda: sys.exit(3)), status_of(lambda: sys.exit("why"))
        (0, 3, 1)
    """
    try:
        status = program() or 0
    except SystemExit as end:
        status = 0 if end.code is None else end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else 1


def parse(parser: Parser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The words as a command reads them; those that no option takes go where `run_command` says.

    Raises:
        SystemExit: what is wrong was said on stderr.
    """
    arguments, rest = parser.parse_known_args(argv)
    for name, value in vars(arguments).items():
        if value == "" or (isinstance(value, list) and "" in value):
            arguments.parser.error(f"argument {name.replace('_', '-')}: is empty")
    if hasattr(arguments, "more"):
        arguments.more = rest
        return arguments
    options = [word for word in rest if word.startswith("-")]
    if options or (rest and not hasattr(arguments, "overrides")):
        known = {*arguments.parser._option_string_actions} - {"-h", "--help"}
        near = nearest(options[0].partition("=")[0], known) if options else ""
        arguments.parser.error(f"unrecognized arguments: {' '.join(rest)}{near}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]  # written after an option
    return arguments


def refuse_unused(reason: str, **options: object) -> None:
    """Refuse options that would have no effect, instead of ignoring them.

    Args:
        reason: why, such as "measures no time".
        options: name -> value; those that are None, False or empty were not given.

    Raises:
        ValueError: one was given.

    Example:
        >>> refuse_unused("--no-time measures none", batch_size=8)
        Traceback (most recent call last):
        ...
        ValueError: --batch-size has no effect: --no-time measures none; leave it out
    """
    given = [
        f"--{n.replace('_', '-')}"
        for n, value in options.items()
        if value or (value == 0 and value is not False)
    ]
    if given:
        verb = "has" if len(given) == 1 else "have"
        raise ValueError(
            f"{', '.join(given)} {verb} no effect: {reason}; leave {'it' if len(given) == 1 else 'them'} out"
        )


def _end(said: str, message: str, status: int) -> int:
    """Say why, after all that was printed before."""
    try:
        sys.stdout.flush()
    except OSError:  # said again at the end of the process otherwise
        _drop(sys.stdout)
    try:
        print(f"{said}: {message}", file=sys.stderr, flush=True)
    except OSError:
        _drop(sys.stderr)
    return status


def _is_lack_of_memory(error: BaseException) -> bool:
    """Whether Python or torch (which need not be loaded to ask) could not get memory."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _warning_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """What warns the user is said in one line; what warns programmers keeps its place in the code."""
    if category is UserWarning:
        return f"warning: {message}\n"
    return _formatted(message, category, filename, lineno, line)


def _open_standard_files() -> None:
    """Make printing safe: closed standard files read and write nothing, every letter can be written."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the first file that is opened would take its place
            os.open(os.devnull, os.O_RDWR)
    is_closed = sys.stdout is None
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    codecs.register_error("escaped", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="escaped")
    if is_closed:
        print("standard output is closed: what is printed is lost", file=sys.stderr)


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """Names of files that are not UTF-8 as their own bytes, letters that the console lacks escaped."""
    for how in ("surrogateescape", "backslashreplace"):
        try:
            return codecs.lookup_error(how)(error)
        except UnicodeError:
            continue
    raise error


def _drop(stream: IO[str]) -> None:
    """Send what is left of a stream nowhere: the end of the process would fail on it again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):  # no file of the system, as in a test
        return


def add_overrides(parser: argparse.ArgumentParser, about: str | None = None) -> None:
    """``key=value`` arguments, none at least; without a default argparse would call them required."""
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=about)


def at_least(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """An argparse ``type``: a whole number in [least, most].

    Example:
        >>> at_least(1)("3")
        3
    """

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from error
        if number < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
        if number > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, got {text[:40]}")
        return number

    return parse


def number_in(
    low: float, high: float, *, low_is_in: bool = True, high_is_in: bool = True
) -> Callable[[str], float]:
    """An argparse ``type``: a number between two bounds; NaN is none.

    Example:
        >>> number_in(0, 1)("0.5")
        0.5
    """

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from error
        above = low <= number if low_is_in else low < number
        below = number <= high if high_is_in else number < high
        if not (above and below):
            brackets = "[" if low_is_in else "(", "]" if high_is_in else ")"
            raise argparse.ArgumentTypeError(
                f"must be in {brackets[0]}{low:g}, {high:g}{brackets[1]}, got {text}"
            )
        return number

    return parse


def add_level_option(parser: argparse.ArgumentParser) -> None:
    """``--level`` of the commands that choose between systems, see `coe_core.choose`.

    Example:
        >>> parser = Parser()
        >>> add_level_option(parser)
        >>> parser.parse_args([]).level
        0.05
    """
    parser.add_argument(
        "--level",
        type=number_in(0, 1, low_is_in=False),
        default=0.05,
        metavar="P",
        help="of the paired test: simpler systems that are not worse at this level are preferred; 1 takes "
        "the best (default: 0.05)",
    )


def parsed_by(parse: Callable[[str], object]) -> Callable[[str], object]:
    """An argparse ``type``: a parser whose ValueErrors are messages for the user.

    Example:
        >>> from coe_core.support.aims import parse_size
        >>> parsed_by(parse_size)("10M")
        10485760
    """

    def call(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).replace("%", "%%")) from error

    return call
