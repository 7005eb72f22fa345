"""What is sent to a server of a run, and what it answers: images in requests, predictions as JSON."""

from __future__ import annotations

import dataclasses
import math
import os

from fastapi import HTTPException, Request
from pydantic import BaseModel

from coe_core.errors import CoEError
from coe_core.support.command import nearest
from vision.prediction.budgets import ResolvedBudget
from vision.prediction.predictor import Prediction
from vision.run import Run
from vision.serve.limits import printable_text

TOP = 5
PARAMETERS = ("budget", "threshold")


class ClassProbability(BaseModel):
    """A class and its probability."""

    label: str
    probability: float


class Answer(BaseModel):
    """What the run says of an image, how it came about, and what it cost."""

    label: str
    probability: float
    top: list[ClassProbability]
    exited: bool
    expert: int | None
    confidence: float
    rough_label: str
    macs: int
    budget: str
    threshold: float | None  # none: infinite, nothing exits
    milliseconds: float


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


class NotFiniteError(CoEError):
    """Networks that answer with NaN or infinity."""


IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}
REFUSALS = {
    400: "unknown budget, bad threshold, unknown parameter, a form that cannot be read",
    403: "a page of another site",
    408: "the body arrives too slowly",
    413: "the body is too large, or the image needs more memory than all may have",
    422: "not an image, or too many pixels",
    429: "too many requests; try again later",
    500: "the prediction failed",
    503: "no memory free in time, or the predictor does not answer; try again later",
    504: "the prediction did not end in time",
}


def check_parameters(request: Request) -> None:
    """Refuse parameters that would be ignored.

    Raises:
        HTTPException: 400, an unknown one, or one given twice.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in PARAMETERS:
            known = f"known: {', '.join(PARAMETERS)}{nearest(name[:80].lower(), PARAMETERS)}"
            raise HTTPException(400, f"unknown parameter {printable_text(name, 80)!r}; {known}")
        if names.count(name) > 1:
            raise HTTPException(400, f"parameter {name!r} is given {names.count(name)} times")


def client_text(error: Exception, run: Run) -> str:
    """What a client may read of an error: one line, without the folders that the run lies in."""
    message, name = str(error), run.folder.resolve().name
    for folder in (str(run.folder.resolve()), str(run.folder)):
        if os.sep in folder:
            message = message.replace(folder, name)
    return printable_text(message, 500)


async def image_of(request: Request) -> tuple[bytes, str]:
    """Bytes and name of the image in a request: its body, or the file `image` of its form.

    Raises:
        HTTPException: 422, there is none; 400, the form cannot be read.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        body = await request.body()
        if not body:
            raise HTTPException(422, "the body is empty: send the image file in it")
        return body, "in the body"
    try:
        form = await request.form(max_files=1, max_fields=10)
    except HTTPException as error:
        raise HTTPException(error.status_code, f"the form: {error.detail}") from error
    except Exception as error:  # the parser raises almost anything on headers that are no form's
        raise HTTPException(400, f"the form cannot be read: {type(error).__name__}") from error
    try:
        file = form.get("image")
        if file is None or isinstance(file, str):
            raise HTTPException(422, "the form has no file field `image`")
        return await file.read(), printable_text(file.filename or "in the form", 100)
    finally:
        await form.close()


def answer_of(
    prediction: Prediction, classes: list[str], budget: ResolvedBudget, seconds: float
) -> Answer:
    """A prediction as it is sent."""
    best = prediction.probabilities.argsort()[::-1][:TOP]
    return Answer(
        label=text(prediction.label),
        probability=prediction.probability,
        top=[
            ClassProbability(label=text(classes[i]), probability=float(prediction.probabilities[i]))
            for i in best
        ],
        exited=bool(prediction.exited),
        expert=prediction.expert,
        confidence=prediction.confidence,
        rough_label=text(prediction.rough_label),
        macs=prediction.macs,
        budget=text(budget.name),
        threshold=finite(budget.threshold),
        milliseconds=1000 * seconds,
    )


def or_its_error(prediction: Prediction) -> Prediction | NotFiniteError:
    """The prediction, or what is wrong with it where networks answered with no numbers."""
    if math.isfinite(prediction.confidence) and math.isfinite(prediction.probability):
        return prediction
    expert = "" if prediction.expert is None else f"expert {prediction.expert} or "
    return NotFiniteError(f"{expert}the delegator answered with NaN or infinity")


def plain_budget(budget: ResolvedBudget) -> dict:
    """The budget as a dictionary for JSON."""
    return {**dataclasses.asdict(budget), "threshold": finite(budget.threshold)}


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
