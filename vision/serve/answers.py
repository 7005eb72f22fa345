"""What is sent to a server of a run, and what it answers: images in requests, predictions as JSON."""

from __future__ import annotations

import dataclasses
import math

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter, ValidationError

from coe_core.serving.answers import REFUSALS, NotFiniteError, check_parameters, finite, text
from coe_core.serving.limits import printable_text
from vision.budgets import ResolvedBudget
from vision.prediction.predictor import Prediction

TOP = 5
PARAMETERS = {
    "budget": ("string", "operating point, or mean multiply-adds such as 100M"),
    "threshold": ("number", "exit when confidence >= this; instead of a budget"),
}
_NUMBER = TypeAdapter(float)


class ClassProbability(BaseModel):
    """A class and its probability."""

    label: str
    probability: float


class Answer(BaseModel):
    """What the run says of an image, how it came about, and what it cost."""

    label: str
    probability: float
    top: list[ClassProbability]
    exited: bool | None  # none: of a system without exits
    expert: int | None
    confidence: float
    rough_label: str
    macs: int
    system: str
    budget: str
    threshold: float | None  # none: infinite, nothing exits
    milliseconds: float


# What FastAPI would write of an endpoint that it parses, which takes a fifth of the server's thread.
IMAGE_REQUEST = {
    "parameters": [
        {"name": name, "in": "query", "description": about, "schema": {"type": kind}}
        for name, (kind, about) in PARAMETERS.items()
    ],
    "x-curl": " --data-binary @photo.jpg -H 'Content-Type: image/jpeg'",  # for the page of the API
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
    },
}
IMAGE_REFUSALS = REFUSALS | {
    400: "unknown budget, bad threshold, unknown parameter, a form that cannot be read",
    413: "the body is too large, or the image needs more memory than all may have",
    422: "not an image, or too many pixels",
    503: "no memory free in time, or the predictor does not answer; try again later",
}


def parameters_of(request: Request) -> tuple[str | None, float | None]:
    """Budget and threshold of a request.

    Raises:
        HTTPException: 400, an unknown parameter, or one given twice.
        RequestValidationError: a threshold that is no number.
    """
    check_parameters(request, tuple(PARAMETERS))
    query = request.query_params
    threshold = query.get("threshold")
    if threshold is None:
        return query.get("budget"), None
    try:
        return query.get("budget"), _NUMBER.validate_python(threshold)
    except ValidationError as error:
        problems = [{**each, "loc": ("query", "threshold")} for each in error.errors()]
        raise RequestValidationError(problems) from error


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
        exited=prediction.exited,
        expert=prediction.expert,
        confidence=prediction.confidence,
        rough_label=text(prediction.rough_label),
        macs=prediction.macs,
        system=text(budget.system),
        budget=text(budget.name),
        threshold=finite(budget.threshold),
        milliseconds=1000 * seconds,
    )


def or_its_error(prediction: Prediction) -> Prediction | NotFiniteError:
    """The prediction, or what is wrong with it where networks answered with no numbers."""
    if math.isfinite(prediction.confidence) and math.isfinite(prediction.probability):
        return prediction
    expert = "" if prediction.expert is None else f"expert {prediction.expert} or "
    name = "the network" if prediction.exited is None else "the delegator"
    return NotFiniteError(f"{expert}{name} answered with NaN or infinity")


def plain_budget(budget: ResolvedBudget) -> dict:
    """The budget as a dictionary for JSON."""
    return {**dataclasses.asdict(budget), "threshold": finite(budget.threshold)}
