"""A run on several machines: a Ray Serve application whose delegator and experts scale separately.

    serve run vision.serve.ray_app:build run=/models/photos delegator_replicas=2 expert_replicas=1

Every replica holds one network only. A request is decoded and routed by the ingress: the delegator
answers, and if that is not enough, the selected expert; no other expert hears of it. Each deployment
collects its own batches. Budgets, messages and answers are those of `coe-vision serve --system NAME`: an
application is of one system, by default the one chosen for the operating point "best".
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from coe_core import AimNotReachableError, ExitRule
from coe_core.serving.answers import client_text, complaints, text
from coe_core.serving.memory import BusyMemoryError, TooMuchMemoryError
from vision.budgets import resolve_budget
from vision.data.preprocess import UnreadableImageError
from vision.errors import RunError
from vision.networks.team import Team, Trunked
from vision.precision import autocast, choose_precision
from vision.prediction.predictor import Prediction
from vision.recipe_networks import Networks, run_macs
from vision.run import Run, load_run
from vision.serve.answers import answer_of, image_of, or_its_error, parameters_of
from vision.serve.decoding import ImageDecoder
from vision.systems import answering, build_system

MEMORY_SECONDS = 60.0  # that an image waits for its share


class Rough(NamedTuple):
    """The delegator's answer for one image."""

    logits: np.ndarray  # [c]
    selection: np.ndarray  # [k]
    features: np.ndarray | None  # of a shared trunk, for the expert; None: it sees the image

    def confidence(self, rule: ExitRule) -> float:
        """By what decides the exits of a budget."""
        both = (torch.from_numpy(logits)[None] for logits in (self.logits, self.selection))
        return float(rule.confidence(*both))


def _forget(networks: Networks) -> None:
    """Every network of a run but those that are held elsewhere."""
    networks.team = networks.cascade = None
    networks.controls.clear()
    networks.ensembles.clear()


class _Replica:
    """One network of a run, in batches."""

    run_batch: Any  # of Ray, in the classes below

    def __init__(self, run: str, system: str, expert: int | None, max_batch: int, window: float):
        loaded = load_run(run, team=False, mapped=True)
        answers = answering(loaded.networks, system)
        self.networks = loaded.networks
        self.precision = choose_precision(loaded.recipe.train.precision)
        self.num_classes = len(self.networks.classes)
        self.network: torch.nn.Module = answers
        self.trunked = isinstance(answers, Team) and isinstance(answers.delegator, Trunked)
        if isinstance(answers, Team):
            self.network = answers.delegator if expert is None else answers.experts[expert]
        self.prepares = expert is None or not self.trunked
        self.device = next(self.network.parameters()).device
        _forget(self.networks)  # the others need no memory here
        self.run_batch.set_max_batch_size(max_batch)
        self.run_batch.set_batch_wait_timeout_s(window)

    @torch.inference_mode()
    def seen(self, rows: list[np.ndarray]) -> torch.Tensor:
        """What the network goes on from: prepared images, or a trunk's features as they come."""
        seen = torch.from_numpy(np.stack(rows)).to(self.device)
        return self.networks.prepare(seen) if self.prepares else seen


@serve.deployment
class Delegator(_Replica):
    """Pixels -> rough logits, selection logits (of a network alone none), features of a shared trunk."""

    @torch.inference_mode()
    def answers(self, pixels: list[np.ndarray]) -> list[Rough]:
        seen, network = self.seen(pixels), self.network
        with autocast(self.device, self.precision):
            if isinstance(network, Trunked):
                seen = network.trunk(seen)
                outputs = network.branch(seen)
            else:
                outputs = network(seen)
        outputs = outputs.float().cpu().numpy()
        features = seen.float().cpu().numpy() if self.trunked else [None] * len(pixels)
        rough, selection = outputs[:, : self.num_classes], outputs[:, self.num_classes :]
        return [Rough(*row) for row in zip(rough, selection, features, strict=True)]

    @serve.batch
    async def run_batch(self, pixels: list[np.ndarray]) -> list[Rough]:
        return await asyncio.to_thread(self.answers, pixels)

    async def __call__(self, pixels: np.ndarray) -> Rough:
        return await self.run_batch(pixels)


@serve.deployment
class Expert(_Replica):
    """Pixels, or a shared trunk's features -> logits."""

    @torch.inference_mode()
    def answers(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        seen = self.seen(rows)
        with autocast(self.device, self.precision):
            return list(self.network(seen).float().cpu().numpy())

    @serve.batch
    async def run_batch(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        return await asyncio.to_thread(self.answers, rows)

    async def __call__(self, row: np.ndarray) -> np.ndarray:
        return await self.run_batch(row)


@serve.deployment
class Ingress:
    """Decodes, asks the delegator, and the selected expert where that is not enough."""

    def __init__(
        self,
        run: str,
        system: str,
        delegator: Any,
        experts: list[Any],
        max_pixels: int,
        max_bytes: int,
        max_memory: int,
    ):
        loaded: Run = load_run(run, team=False, mapped=True)
        self.system = system
        built = build_system(loaded.networks, run_macs(loaded.networks), system)
        self.first_macs, self.expert_macs = built.first_macs, built.expert_macs
        self.classes = loaded.networks.classes
        self.decoder = ImageDecoder(
            loaded.networks.preprocess, max_pixels, max_memory, MEMORY_SECONDS
        )
        # Residual experts go on from the rough logits, which are added here.
        self.residual = float(built.team is not None and built.team.rough_logits)
        _forget(loaded.networks)
        self.run, self.max_bytes = loaded, max_bytes
        self.delegator, self.experts = delegator, experts
        resolve_budget(loaded, system=system)

    async def predict(
        self, image: bytes, budget: str | None = None, threshold: float | None = None
    ) -> Prediction:
        """One image, as `Predictor` would."""
        return (await self._predict(image, "in memory", budget, threshold))[0]

    async def _predict(self, image, name, budget, threshold):
        resolved = resolve_budget(self.run, budget, threshold, self.system)
        pixels = (await self.decoder.decode(image, name)).numpy()
        rough: Rough = await self.delegator.remote(pixels)
        confidence = rough.confidence(resolved.rule)
        alone = not self.experts
        exited = confidence >= resolved.threshold
        logits, spent, expert = rough.logits, self.first_macs, None
        if not (exited or alone):
            expert = int(rough.selection.argmax())
            seen = pixels if rough.features is None else rough.features
            answer = await self.experts[expert].remote(seen)
            logits = answer + np.float32(resolved.rough_weight + self.residual) * rough.logits
            spent += self.expert_macs[expert]
        odds = np.exp(logits - logits.max())
        prediction = Prediction(
            self.classes[int(logits.argmax())],
            odds / odds.sum(),
            None if alone else exited,
            expert,
            confidence,
            self.classes[int(rough.logits.argmax())],
            spent,
        )
        return prediction, resolved

    async def __call__(self, request: Request) -> JSONResponse:
        """POST an image, with `budget` or `threshold` in the query."""
        start = time.perf_counter()
        try:
            budget, threshold = parameters_of(request)
            length = request.headers.get("content-length", "")
            if not length.isdigit() or int(length) > self.max_bytes:  # bodies of unknown length too
                raise HTTPException(
                    413, f"a body has its length, of at most {self.max_bytes:,} bytes"
                )
            content, name = await image_of(request)
            prediction, resolved = await self._predict(content, name, budget, threshold)
        except HTTPException as error:
            return JSONResponse({"detail": text(error.detail)}, error.status_code)
        except RequestValidationError as error:
            return JSONResponse({"detail": complaints(error)}, 422)
        except TooMuchMemoryError as error:
            return JSONResponse({"detail": f"the image is too large: {error}"}, 413)
        except BusyMemoryError as error:
            return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "1"})
        except UnreadableImageError as error:
            return JSONResponse({"detail": client_text(error, self.run.folder)}, 422)
        except (ValueError, RunError, AimNotReachableError, OverflowError) as error:
            return JSONResponse({"detail": client_text(error, self.run.folder)}, 400)
        if isinstance(or_its_error(prediction), Exception):
            return JSONResponse(
                {"detail": f"the prediction failed: {or_its_error(prediction)}"}, 500
            )
        seconds = time.perf_counter() - start
        return JSONResponse(answer_of(prediction, self.classes, resolved, seconds).model_dump())


class Settings(NamedTuple):
    """How an application is laid out; `serve run` gives them as key=value.

    Args:
        run: run folder or checkpoint, at the same place on every machine.
        delegator_replicas: of the delegator; "auto" lets Ray scale it with the load.
        expert_replicas: of every expert; "auto" lets Ray scale each by its own load.
        ingress_replicas: that decode and route.
        max_batch: images in a batch.
        window: seconds that a batch collects.
        max_queued: requests that a deployment lets wait; further ones get 503 from Ray.
        max_pixels: of an image.
        max_bytes: of a body.
        max_memory: bytes for images while they are decoded, of an ingress replica.
        num_cpus: reserved for a replica.
        num_gpus: reserved for a replica of a network; may be a fraction.
        system: that is served; empty: the one chosen for "best".
    """

    run: str
    delegator_replicas: int | str = 1
    expert_replicas: int | str = 1
    ingress_replicas: int | str = 1
    max_batch: int = 32
    window: float = 0.002
    max_queued: int = 256
    max_pixels: int = 50_000_000
    max_bytes: int = 10 * 2**20
    max_memory: int = 2**30
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    system: str = ""


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application.

    Args:
        arguments: fields of `Settings`; text is converted, as `serve run` gives only text.

    Raises:
        RunError: no such run, or an argument that is unknown or missing.
    """
    unknown = set(arguments) - set(Settings._fields)
    if unknown or "run" not in arguments:
        known = ", ".join(Settings._fields)
        problem = f"unknown argument {min(unknown)!r}" if unknown else "run=FOLDER is missing"
        raise RunError(f"{problem}; known: {known}")
    defaults = Settings._field_defaults
    settings = Settings(
        **{
            name: value if value == "auto" or name == "run" else type(defaults[name])(value)
            for name, value in arguments.items()
        }
    )
    loaded = load_run(settings.run, team=False)
    system = resolve_budget(loaded, system=settings.system or None).system
    count = len(build_system(loaded.networks, run_macs(loaded.networks), system).expert_macs)

    def deployed(kind, name: str, replicas: int | str, num_gpus: float = 0.0):
        return kind.options(
            name=name,
            num_replicas=replicas,
            max_queued_requests=settings.max_queued,
            max_ongoing_requests=4 * settings.max_batch,
            ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": num_gpus},
        )

    common = (settings.max_batch, settings.window)
    delegator = deployed(Delegator, "delegator", settings.delegator_replicas, settings.num_gpus)
    experts = [
        deployed(Expert, f"expert_{j}", settings.expert_replicas, settings.num_gpus).bind(
            settings.run, system, j, *common
        )
        for j in range(count)
    ]
    ingress = deployed(Ingress, "ingress", settings.ingress_replicas)
    return ingress.bind(
        settings.run,
        system,
        delegator.bind(settings.run, system, None, *common),
        experts,
        settings.max_pixels,
        settings.max_bytes,
        settings.max_memory,
    )
