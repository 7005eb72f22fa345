"""Run an exported Collaboration of Experts, or a network alone, with numpy, Pillow and onnxruntime only.

`coe-vision export RUN --to onnx` copies this file into the export as runner.py:

    python runner.py photo.jpg --at half          (from the command line)
    Runner("export")([...], threshold=0.8)        (from a program)
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from coe_core.support.routing_file import (
    DamagedExportError,
    OneLineParser,
    read_routing,
    run_as_command,
    stored_setting,
    verify_files,
)
from vision.export.runner_images import UnreadableImageError, decode, sides_of

TASK = "vision"
_AHEAD = 2  # batches that are decoded before they are needed
_TOGETHER = 8  # images that one thread decodes at a time


@dataclass(frozen=True, eq=False)
class Routed:
    """Probabilities of a batch in its own order, and how each came about.

    Where the export is of a network alone, nothing exits and nothing is selected.
    """

    probabilities: np.ndarray  # [n, c]
    exited: np.ndarray  # [n] bool: ended with the rough prediction
    selected_expert: np.ndarray  # [n]: also told for exits, where it did not run
    confidence: np.ndarray  # [n]


class Runner:
    """The networks of an export: exits leave, each needed expert runs once on its group.

    Args:
        folder: of the export.
        threads: of onnxruntime; 0 lets it choose.
        batch_size: images in one call of a network, at most.
        providers: of onnxruntime.
        verify: compare every file with its digest in routing.json; takes about a second for a gigabyte.

    Raises:
        ValueError: a file that is missing or damaged (DamagedExportError, which names it), or a batch
            size below 1.
    """

    def __init__(
        self,
        folder: str | Path,
        threads: int = 0,
        batch_size: int = 64,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        verify: bool = True,
    ):
        import onnxruntime

        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        folder = Path(folder)
        self.routing = read_routing(folder, TASK, verify)
        self.classes: list[str] = self.routing["classes"]
        self.batch_size = batch_size
        networks = [self.routing["delegator"], *self.routing["experts"]]
        if verify:
            verify_files(folder, self.routing, [network["file"] for network in networks])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that wait for work would take processors from those that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")

        def session(network: dict) -> onnxruntime.InferenceSession:
            path = folder / network["file"]
            if not path.is_file():
                raise DamagedExportError(f"{path} is missing: copy the whole export")
            try:
                return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
            except Exception as error:  # onnxruntime's errors have no common class
                raise DamagedExportError(f"onnxruntime does not load {path}: {error}") from error

        self.delegator, *self.experts = map(session, networks)

    def setting(self, at: str | None = None, threshold: float | None = None) -> tuple[float, float]:
        """Threshold and rough weight of a stored operating point, or of a threshold of one's own.

        Raises:
            ValueError: an operating point that is not stored (lists those that are), or a threshold
                that is NaN or below 0.
        """
        return stored_setting(self.routing, at, threshold)

    def infer(self, pixels: np.ndarray, threshold: float, rough_weight: float = 0.0) -> Routed:
        """Route a batch of decoded images: uint8 [n, channels, size, size].

        Raises:
            ValueError: pixels of another type or shape.
        """
        preprocess = self.routing["preprocess"]
        shape = (preprocess["channels"], *sides_of(preprocess))
        if pixels.dtype != np.uint8 or pixels.shape[1:] != shape:
            raise ValueError(
                f"pixels must be uint8 of shape n x {' x '.join(map(str, shape))}, got {pixels.dtype} "
                f"of shape {' x '.join(map(str, pixels.shape))}"
            )
        # Of a network alone there are two; the fourth is what a shared trunk made of the images.
        counts = (3, 4) if self.experts else (2,)
        name = "the delegator" if self.experts else "the network"
        rough, confidence, *more = self._outputs(self.delegator, name, {"images": pixels}, counts)
        selected = more[0] if more else np.zeros(len(pixels), np.int64)
        seen = more[1] if more[1:] else pixels
        exited = (confidence >= np.float32(threshold)) & bool(self.experts)
        logits = rough.copy()
        for j in np.unique(selected[~exited]) if self.experts else ():
            if j >= len(self.experts):
                raise DamagedExportError(
                    f"the delegator selects expert {j}, routing.json names {len(self.experts)}"
                )
            rows = np.flatnonzero((selected == j) & ~exited)
            group = seen if len(rows) == len(seen) else seen[rows]
            expert = self.experts[j]
            feed = {expert.get_inputs()[0].name: group}
            (answer,) = self._outputs(expert, f"expert {j}", feed)
            logits[rows] = answer + np.float32(rough_weight) * rough[rows]
        logits -= logits.max(axis=1, keepdims=True)
        odds = np.exp(logits)
        return Routed(odds / odds.sum(axis=1, keepdims=True), exited, selected, confidence)

    def _outputs(
        self, session, name: str, feed: dict[str, np.ndarray], counts: Sequence[int] = (1,)
    ) -> list[np.ndarray]:
        """What a network answers: logits [n, c] first.

        Raises:
            DamagedExportError: it does not fit routing.json, as where digests are not compared.
        """
        try:
            outputs = session.run(None, feed)
        except Exception as error:  # onnxruntime's errors have no common class
            reason = " ".join(str(error).split())
            raise DamagedExportError(f"{name} does not fit routing.json: {reason}") from error
        n = len(next(iter(feed.values())))
        wanted, shape = (n, len(self.classes)), np.shape(outputs[0])
        if len(outputs) not in counts or shape != wanted:
            raise DamagedExportError(
                f"{name} does not fit routing.json: it has {len(outputs)} outputs, of them the first of "
                f"shape {shape}, not {counts[0]} and {wanted}"
            )
        return outputs

    def decode(self, image: str | Path | Image.Image) -> np.ndarray:
        """An image as the networks take it: uint8 [channels, size, size]."""
        return decode(image, self.routing["preprocess"])

    def __call__(
        self,
        images: Sequence[str | Path | Image.Image],
        at: str | None = None,
        threshold: float | None = None,
    ) -> list[dict]:
        """Label, probability, route, confidence and multiply-adds of each image, in order.

        Raises:
            ValueError: as `setting`, or an image that cannot be decoded (UnreadableImageError).
        """
        if isinstance(images, str | Path | Image.Image):
            images = [images]
        records: list[dict] = []
        with contextlib.closing(self.answers(images, at, threshold)) as answers:
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
                records.append(answer)
        return records

    def answers(
        self,
        images: Sequence[str | Path | Image.Image],
        at: str | None = None,
        threshold: float | None = None,
    ) -> Generator[dict | UnreadableImageError | MemoryError, None, None]:
        """The same one by one; in the place of an image that cannot be decoded its error.

        While the networks answer a batch, the next two are decoded.

        Raises:
            ValueError: as `setting`.
        """
        chosen, rough_weight = self.setting(at, threshold)
        starts = iter(range(0, len(images), self.batch_size))
        with ThreadPoolExecutor(_processors()) as decoders:

            def decoding(start: int) -> list[Future]:
                batch = images[start : start + self.batch_size]
                parts = [batch[i : i + _TOGETHER] for i in range(0, len(batch), _TOGETHER)]
                return [decoders.submit(self._decoded, part) for part in parts]

            try:
                ahead = deque(map(decoding, itertools.islice(starts, 1 + _AHEAD)))
                while ahead:
                    decoded = [image for part in ahead.popleft() for image in part.result()]
                    ahead.extend(map(decoding, itertools.islice(starts, 1)))
                    yield from self._answers(decoded, chosen, rough_weight)
            finally:  # of a caller that needs no more
                decoders.shutdown(cancel_futures=True)

    def _decoded(self, images: Sequence) -> list[np.ndarray | UnreadableImageError | MemoryError]:
        """Pixels, or the error, of a few images: threads that change hands at every one take longer."""
        decoded: list[np.ndarray | UnreadableImageError | MemoryError] = []
        for image in images:
            try:
                decoded.append(self.decode(image))
            except (UnreadableImageError, MemoryError) as error:
                decoded.append(error)
        return decoded

    def _answers(self, decoded: list, threshold: float, rough_weight: float) -> Iterator:
        pixels = [image for image in decoded if isinstance(image, np.ndarray)]
        if pixels:
            routed = self.infer(np.stack(pixels), threshold, rough_weight)
        rows = itertools.count()
        for image in decoded:
            yield image if isinstance(image, Exception) else self._record(routed, next(rows))

    def _record(self, routed: Routed, i: int) -> dict:
        exited, expert = bool(routed.exited[i]), int(routed.selected_expert[i])
        label = int(routed.probabilities[i].argmax())
        by_expert = bool(self.experts) and not exited
        spent = self.routing["experts"][expert]["macs"] if by_expert else 0
        return {
            "label": self.classes[label],
            "probability": float(routed.probabilities[i, label]),
            "exited": exited if self.experts else None,
            "expert": expert if by_expert else None,
            "confidence": float(routed.confidence[i]),
            "macs": self.routing["delegator"]["macs"] + spent,
        }


def _processors() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main(arguments: Sequence[str] | None = None) -> int:
    """One JSON line per image; an image that cannot be read has an "error" instead.

    Exit status: 0; 1 if an image could not be read; 2 if nothing could be done.
    """
    parser = OneLineParser("Predict images with an exported team.")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--folder", default=str(Path(__file__).parent), help="of the export")
    parser.add_argument("--at", help="stored operating point")
    parser.add_argument("--threshold", type=float, help="exit when confidence >= this")
    parser.add_argument(
        "--no-verify", action="store_true", help="do not compare files with their digests"
    )
    chosen = parser.parse_args(arguments)
    return run_as_command("runner.py", lambda: _predict(chosen))


def _predict(chosen: argparse.Namespace) -> int:
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is an error here
    runner, failed = Runner(chosen.folder, verify=not chosen.no_verify), 0
    answers = runner.answers(chosen.images, chosen.at, chosen.threshold)
    for name, answer in zip(chosen.images, answers, strict=True):
        if isinstance(answer, Exception):
            answer, failed = {"error": str(answer) or "not enough memory"}, 1
        # Names that are not UTF-8 are written with their bytes as escapes.
        print(json.dumps({"file": os.fspath(name), **answer}), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
