"""Errors in one line: what they say, and of those of a library where it raised them."""

from __future__ import annotations

import os
import traceback
from collections.abc import Collection

_OURS = ("coe_core", "vision", "translation")


def one_line(error: BaseException) -> str:
    """The message of an error, in one line.

    Example:
        >>> one_line(FileNotFoundError(2, "No such file or directory", "a.txt"))
        'a.txt: No such file or directory'
        >>> one_line(ValueError("first\\n   second"))
        'first second'
    """
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        text = error.strerror
    elif isinstance(error, OSError) and error.strerror:
        name = os.fsdecode(error.filename) if not isinstance(error.filename, int) else "a file"
        text = f"{name}: {error.strerror}"
    else:
        text = str(error)
    return " ".join(text.split()) or type(error).__name__


def fault_of_library(error: BaseException, libraries: Collection[str]) -> str | None:
    """An error that a library of others, or what that called, has raised: its reason and place in one line.

    None for an error of our own code, the library's callbacks into it included.

    Args:
        error: that was raised.
        libraries: names of packages.

    Example:
        >>> import json
        >>> try:
        ...     json.loads(3)
        ... except TypeError as error:
        ...     print(fault_of_library(error, ["json"]), fault_of_library(error, ["csv"]))
        TypeError in json/__init__.py, line ...: the JSON object must be str, ..., not int None
    """
    last = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] in (*libraries, *_OURS):
            last = module, frame.f_code.co_filename, line
    if last is None or last[0].partition(".")[0] not in libraries:
        return None
    name = "/".join(last[1].split(os.sep)[-2:])
    reason = one_line(error)
    kind = type(error).__name__
    return f"{kind} in {name}, line {last[2]}" + (f": {reason[:600]}" if reason != kind else "")
