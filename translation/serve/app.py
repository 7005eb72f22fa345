"""A run of translation over HTTP: texts at any budget, health, metrics, and a page to try it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI, HTTPException, Request

import coe_core.serving.app
from coe_core import AimNotReachableError
from coe_core.errors import CoEError
from coe_core.serving.answers import Problem, check_parameters, client_text, finite, plain, text
from coe_core.serving.app import ServerSettings, base_app, unless_gone
from coe_core.serving.metrics import LiveMetrics
from translation.prediction.engine import Setting
from translation.prediction.sentences import split_sentences
from translation.prediction.translator import Sentence, Translation, Translator
from translation.serve.answers import (
    JSON_BODY,
    TEXT_REFUSALS,
    Answer,
    Question,
    answered_sentence,
    plain_setting,
)

_PAGE = Path(__file__).parent / "web" / "index.html"
_EXPERT = re.compile(r"expert-(\d+)")


class _Item(NamedTuple):
    """A sentence, and how it is wanted."""

    sentence: Sentence
    setting: Setting
    nbest: int


class Service(coe_core.serving.app.Service[_Item, Translation]):
    """What the endpoints share: batches by tokens, metrics and health of one server.

    Args:
        translator: of a run, an export, or a checkpoint.
        settings: limits; a batch is counted in tokens.
        max_sentences: of one request.
    """

    def __init__(self, translator: Translator, settings: ServerSettings, max_sentences: int):
        self.translator, self.max_sentences = translator, max_sentences
        facts = translator.engine.facts(translator.system)
        num_experts = len(facts["macs"].get("experts", []))
        super().__init__(
            self._translate,
            settings,
            LiveMetrics(num_experts, unit="sentences"),
            _run_facts(translator, facts),
            size=lambda item: item.sentence.size,
            max_items=max_sentences,
        )

    def _translate(self, items: list[_Item]) -> list[Translation]:
        """A batch; sentences of one budget together."""
        self.metrics.batch.observe(len(items))
        rows: dict[tuple[Setting, int], list[int]] = {}
        for row, item in enumerate(items):
            rows.setdefault((item.setting, item.nbest), []).append(row)
        answers: dict[int, Translation] = {}
        for (setting, nbest), mine in rows.items():
            sentences = [items[row].sentence for row in mine]
            translations = self.translator.translate(sentences, setting, nbest=nbest)
            answers |= dict(zip(mine, translations, strict=True))
        return [answers[row] for row in range(len(items))]

    def resolve(self, question: Question) -> Setting:
        """See `Translator.resolve`; what is wrong with it is the client's to know.

        Raises:
            HTTPException: 400.
        """
        beam = self.translator.search.beam
        try:
            self.translator.cut("", question.target)
            if question.nbest > beam:
                raise ValueError(f"nbest must be in [1, {beam}], the beam, got {question.nbest}")
            return self.translator.resolve(question.budget, question.threshold, question.system)
        except (ValueError, CoEError, AimNotReachableError, OverflowError) as error:
            raise HTTPException(400, client_text(error, self.translator.source)) from error

    async def translate(
        self, lines: Sequence[str], setting: Setting, nbest: int, target: str | None = None
    ) -> list[Translation]:
        """Translations of one request's sentences, which share batches with those of others.

        Raises:
            HTTPException: why there are none.
        """
        sentences = await asyncio.to_thread(
            lambda: [self.translator.cut(line, target) for line in lines]
        )
        owner = object()
        items = [_Item(sentence, setting, nbest) for sentence in sentences]
        tasks = [asyncio.ensure_future(self.submit(item, owner)) for item in items]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def count(self, translations: Sequence[Translation], setting: Setting, seconds: float) -> None:
        """One answered request, for the metrics and the drift."""
        self.metrics.seconds.observe(seconds)
        for translation in translations:
            expert = _EXPERT.fullmatch(translation.route)
            route = None if translation.exited else int(expert[1]) if expert else translation.route
            self.metrics.routed(route, finite(translation.macs) or 0.0)
            if setting.exit_rate is not None and translation.pieces:
                self.metrics.exited(translation.exited, setting.exit_rate, setting.num_samples)


def create_app(
    translator: Translator, settings: ServerSettings | None = None, max_sentences: int = 512
) -> FastAPI:
    """The application for any ASGI server.

    Args:
        translator: of a run, an export, or a checkpoint.
        settings: limits; a batch is counted in tokens.
        max_sentences: of one request.
    """
    service = Service(translator, settings or ServerSettings(max_batch=1024), max_sentences)
    description = "Translation with early termination and one expert per sentence."
    app = base_app(service, "coe-translation", description, _PAGE)
    _add_translation(app, service)
    return app


def _add_translation(app: FastAPI, service: Service) -> None:
    @app.post(
        "/translate",
        openapi_extra=JSON_BODY,
        responses={
            code: {"model": Problem, "description": why} for code, why in TEXT_REFUSALS.items()
        },
    )
    async def translate_text(request: Request, question: Question) -> Answer:
        """Translate a text, or a list of sentences; the body is JSON."""
        start = time.perf_counter()
        check_parameters(request, ())
        _check_json(request)
        setting = service.resolve(question)
        paragraphs = await asyncio.to_thread(_paragraphs, question)
        lines = [line for paragraph in paragraphs for line in paragraph]
        if len(lines) > service.max_sentences:
            raise HTTPException(
                413, f"{len(lines):,} sentences, a request may have {service.max_sentences:,}"
            )
        work = service.translate(lines, setting, question.nbest, question.target)
        translations = await unless_gone(request, work)
        seconds = time.perf_counter() - start
        service.count(translations, setting, seconds)
        texts = iter(translation.text for translation in translations)
        return Answer(
            text=text("\n".join(" ".join(next(texts) for _ in p) for p in paragraphs)),
            sentences=[
                answered_sentence(line, translation)
                for line, translation in zip(lines, translations, strict=True)
            ],
            system=setting.system,
            budget=text(setting.name),
            threshold=finite(setting.threshold),
            macs=sum(finite(translation.macs) or 0.0 for translation in translations),
            milliseconds=1000 * seconds,
        )


def _check_json(request: Request) -> None:
    """A page of another site can send a form without asking, but no JSON.

    Raises:
        HTTPException: 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "the body must be JSON, with Content-Type: application/json")


def _paragraphs(question: Question) -> list[list[str]]:
    """Sentences by line.

    Raises:
        HTTPException: 422, no text, or two.
    """
    if (question.text is None) == (question.texts is None):
        raise HTTPException(422, "give text, or a list texts")
    if question.texts is not None:
        return [[line] for line in question.texts]
    return [split_sentences(line) for line in (question.text or "").split("\n")]


def _run_facts(translator: Translator, facts: dict) -> bytes:
    """What /run answers."""
    engine, setting = translator.engine, translator.resolve()
    said = {
        "name": text(engine.name),
        **facts,
        "beam": engine.search.beam,
        "longest": engine.longest,
        "targets": engine.targets,
        "samples": [text(line) for line in engine.samples],
        "default": plain_setting(setting),
    }
    return json.dumps(plain(said), allow_nan=False).encode()
