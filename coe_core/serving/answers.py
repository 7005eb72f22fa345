"""What requests and answers of both servers have in common: parameters, refusals, numbers and names."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from coe_core.errors import CoEError
from coe_core.serving.limits import printable_text
from coe_core.support.command import nearest

REFUSALS = {  # of every request for a prediction
    403: "a page of another site",
    408: "the body arrives too slowly",
    429: "too many requests; try again later",
    500: "the prediction failed",
    504: "the prediction did not end in time",
}


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


class NotFiniteError(CoEError):
    """Networks that answer with NaN or infinity."""


def check_parameters(request: Request, known: Sequence[str]) -> None:
    """Refuse parameters that would be ignored.

    Args:
        request: any.
        known: names of its parameters.

    Raises:
        HTTPException: 400, an unknown one, or one given twice.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in known:
            which = f"known: {', '.join(known) or 'none'}{nearest(name[:80].lower(), known)}"
            raise HTTPException(400, f"unknown parameter {printable_text(name, 80)!r}; {which}")
        if names.count(name) > 1:
            raise HTTPException(400, f"parameter {name!r} is given {names.count(name)} times")


def client_text(error: Exception, folder: Path) -> str:
    """What a client may read of an error: one line, without the folders that the run lies in.

    Example:
        >>> client_text(ValueError("/models/photos has no point 'x'"), Path("/models/photos"))
        "photos has no point 'x'"
    """
    message, name = str(error), folder.resolve().name
    for path in (str(folder.resolve()), str(folder)):
        if os.sep in path:
            message = message.replace(path, name)
    return printable_text(message, 500)


def plain(value: Any) -> Any:
    """The value with None in place of numbers that JSON has no form for.

    Example:
        >>> plain({"threshold": math.inf, "macs": [1, 2.5]})
        {'threshold': None, 'macs': [1, 2.5]}
    """
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return finite(value) if isinstance(value, float) else value


def finite(number: float) -> float | None:
    """None where JSON has no number for it."""
    return number if math.isfinite(number) else None


def text(name: str) -> str:
    """A name as it is, but for bytes that are no UTF-8, which JSON cannot hold.

    Example:
        >>> text("Ünï"), text("\\udcff")
        ('Ünï', '\\\\udcff')
    """
    return name.encode("utf-8", "backslashreplace").decode()


def complaints(error: RequestValidationError) -> str:
    """What is wrong with a request, in words of who sends it: ten things at most."""
    return "; ".join(map(_complaint, error.errors()[:10]))


def _complaint(problem: dict[str, Any]) -> str:
    place, got = problem["loc"][-1], problem.get("input")
    if problem["type"] == "json_invalid":
        return f"the body is not JSON: {problem['ctx']['error']}, at character {place}"
    if place == "body":
        what = (
            "empty" if got in (None, b"") else "no JSON object with Content-Type: application/json"
        )
        return f"the body is {what}"
    return f"{place}: {problem['msg']}, got {printable_text(repr(got), 80)}"
