"""Run an exported Collaboration of Experts with numpy, Pillow and onnxruntime alone.

`coe-vision export RUN --to onnx` copies this file into the export as runner.py:

    python runner.py photo.jpg --at half          (from the command line)
    Runner("export")([...], threshold=0.8)        (from a program)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


@dataclass(frozen=True, eq=False)
class Routed:
    """Probabilities of a batch in its own order, and how each came about."""

    probabilities: np.ndarray  # [n, c]
    exited: np.ndarray  # [n] bool: ended with the rough prediction
    selected_expert: np.ndarray  # [n]: also told for exits, where it did not run
    confidence: np.ndarray  # [n]


class Runner:
    """The k+1 networks of an export: exits leave, each needed expert runs once on its group.

    Args:
        folder: of the export.
        threads: of onnxruntime; 0 lets it choose.
        batch_size: images in one call of a network, at most.
        providers: of onnxruntime.
    """

    def __init__(
        self,
        folder: str | Path,
        threads: int = 0,
        batch_size: int = 64,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ):
        import onnxruntime

        folder = Path(folder)
        self.routing = json.loads((folder / "routing.json").read_text(encoding="utf-8"))
        self.classes: list[str] = self.routing["classes"]
        self.batch_size = batch_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads

        def session(network: dict) -> onnxruntime.InferenceSession:
            return onnxruntime.InferenceSession(
                str(folder / network["file"]), options, providers=list(providers)
            )

        self.delegator = session(self.routing["delegator"])
        self.experts = [session(expert) for expert in self.routing["experts"]]

    def setting(self, at: str | None = None, threshold: float | None = None) -> tuple[float, float]:
        """Threshold and rough weight of a stored operating point, or of a threshold of one's own.

        Raises:
            ValueError: an operating point that is not stored; lists those that are.
        """
        points = self.routing["operating_points"]
        if at is not None and at not in points:
            raise ValueError(f"no operating point {at!r}; stored: {', '.join(points) or 'none'}")
        chosen = self.routing["default"] if at is None else points[at]
        limit = float(chosen["threshold"] if threshold is None else threshold)
        if not limit >= 0:
            raise ValueError(f"threshold must be at least 0, got {limit}")
        return limit, float(chosen["rough_weight"])

    def infer(self, pixels: np.ndarray, threshold: float, rough_weight: float = 0.0) -> Routed:
        """Route a batch of decoded images: uint8 [n, channels, size, size]."""
        rough, confidence, selected = self.delegator.run(None, {"images": pixels})
        exited = confidence >= np.float32(threshold)
        logits = rough.copy()
        for j in np.unique(selected[~exited]):
            rows = np.flatnonzero((selected == j) & ~exited)
            group = pixels if len(rows) == len(pixels) else pixels[rows]
            answer = self.experts[j].run(None, {"images": group})[0]
            logits[rows] = answer + np.float32(rough_weight) * rough[rows]
        logits -= logits.max(axis=1, keepdims=True)
        odds = np.exp(logits)
        return Routed(odds / odds.sum(axis=1, keepdims=True), exited, selected, confidence)

    def decode(self, image: str | Path | Image.Image) -> np.ndarray:
        """An image as the networks take it: uint8 [channels, size, size]."""
        return decode(image, self.routing["preprocess"])

    def __call__(
        self,
        images: Sequence[str | Path | Image.Image],
        at: str | None = None,
        threshold: float | None = None,
    ) -> list[dict]:
        """Label, probability, route, confidence and multiply-adds of each image, in order."""
        limit, rough_weight = self.setting(at, threshold)
        found = []
        for start in range(0, len(images), self.batch_size):
            batch = [self.decode(image) for image in images[start : start + self.batch_size]]
            routed = self.infer(np.stack(batch), limit, rough_weight)
            found += [self._record(routed, i) for i in range(len(batch))]
        return found

    def _record(self, routed: Routed, i: int) -> dict:
        exited, expert = bool(routed.exited[i]), int(routed.selected_expert[i])
        label = int(routed.probabilities[i].argmax())
        spent = 0 if exited else self.routing["experts"][expert]["macs"]
        return {
            "label": self.classes[label],
            "probability": float(routed.probabilities[i, label]),
            "exited": exited,
            "expert": None if exited else expert,
            "confidence": float(routed.confidence[i]),
            "macs": self.routing["delegator"]["macs"] + spent,
        }


def decode(image: str | Path | Image.Image, preprocess: dict) -> np.ndarray:
    """As coe-vision decodes: upright, over white, 8 bits, bicubic to size x size."""
    if not isinstance(image, Image.Image):
        with Image.open(image) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; save as 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("L" if preprocess["channels"] == 1 else "RGB")
    size = preprocess["size"]
    if preprocess["resize"] == "crop":
        shorter = int(size * 1.15)
        ratio = shorter / min(image.size)
        width, height = (
            shorter if side == min(image.size) else int(side * ratio) for side in image.size
        )
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    elif image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def main(arguments: Sequence[str] | None = None) -> int:
    """One JSON line per image; an image that cannot be read has an "error" instead."""
    parser = argparse.ArgumentParser(description="Predict images with an exported team.")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--folder", default=str(Path(__file__).parent), help="of the export")
    parser.add_argument("--at", help="stored operating point")
    parser.add_argument("--threshold", type=float, help="exit when confidence >= this")
    chosen = parser.parse_args(arguments)
    runner, failed = Runner(chosen.folder), 0
    try:
        runner.setting(chosen.at, chosen.threshold)
    except ValueError as error:
        parser.error(str(error))
    for name in chosen.images:
        try:
            record = runner([name], chosen.at, chosen.threshold)[0]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            record, failed = {"error": f"{type(error).__name__}: {error}"}, 1
        print(json.dumps({"file": name, **record}))
    return failed


if __name__ == "__main__":
    sys.exit(main())
