"""What is sent to a server of a run of translation, and what it answers: texts and translations as JSON."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from coe_core.serving.answers import REFUSALS, finite, text
from translation.prediction.engine import Setting
from translation.prediction.translator import Translation

_LONGEST = 1_000_000  # characters; the limit of bytes comes first
TEXT_REFUSALS = REFUSALS | {
    400: "unknown budget, system or language, or a parameter in the address",
    413: "the body is too large, or the text has too many sentences",
    415: "no JSON",
    422: "neither text nor texts, an unknown field, or one of another type",
    503: "the translator does not answer; try again later",
}
JSON_BODY = {"x-curl": ' --json \'{"text": "Ein Satz."}\''}  # for the page of the API


class Question(BaseModel):
    """A text, or a list of sentences, to translate."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Annotated[
        str | None,
        Field(max_length=_LONGEST, description="any text; it is split into its sentences"),
    ] = None
    texts: Annotated[
        list[Annotated[str, Field(max_length=_LONGEST)]] | None,
        Field(description="instead of text: sentences, which are translated as they are"),
    ] = None
    budget: Annotated[
        str | None,
        Field(max_length=200, description="operating point, or multiply-adds such as 60% or 20M"),
    ] = None
    threshold: Annotated[
        float | None,
        Field(description="end early when confidence >= this; instead of a budget", strict=False),
    ] = None
    system: Annotated[
        str | None, Field(max_length=200, description="CoE, cascade, single:NAME, ensemble:NAME")
    ] = None
    target: Annotated[
        str | None, Field(max_length=40, description="language, of a run that has several")
    ] = None
    nbest: Annotated[int, Field(ge=1, le=1000, description="hypotheses of each sentence")] = 1


class TranslatedSentence(BaseModel):
    """A sentence, how it was translated, and what that cost."""

    source: str
    text: str
    route: str
    exited: bool
    confidence: float | None  # none: the delegator did not translate, as nothing could end early
    macs: float | None  # none: an older export does not tell
    cut: int  # pieces of its end that were left out
    hypotheses: list[str]


class Answer(BaseModel):
    """Translations in the order of the request."""

    text: str  # all of them: sentences with spaces between them, lines as they were
    sentences: list[TranslatedSentence]
    system: str
    budget: str
    threshold: float | None  # none: infinite, nothing ends early
    macs: float  # of all sentences
    milliseconds: float


def answered_sentence(source: str, translation: Translation) -> TranslatedSentence:
    """A translation as it is sent."""
    return TranslatedSentence(
        source=text(source),
        text=text(translation.text),
        route=translation.route,
        exited=translation.exited,
        confidence=finite(translation.confidence),
        macs=finite(translation.macs),
        cut=translation.cut,
        hypotheses=[text(hypothesis) for hypothesis in translation.hypotheses],
    )


def plain_setting(setting: Setting) -> dict:
    """The setting as a dictionary for JSON."""
    return {**setting._asdict(), "threshold": finite(setting.threshold)}
