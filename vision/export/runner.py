"""Run an exported Collaboration of Experts, or a network alone, with numpy, Pillow and onnxruntime only.

`coe-vision export RUN --to onnx` copies this file into the export as runner.py:

    python runner.py photo.jpg --at half          (from the command line)
    Runner("export")([...], threshold=0.8)        (from a program)
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import stat
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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

TASK = "vision"
# Those that coe-vision opens; others of Pillow's start programs (EPS). HEIF: where pillow-heif is.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "ICO", "AVIF", "HEIF")
_ORIENTATION = 0x0112
LARGE_JPEG = 2**20  # pixels, above which one is decoded at a fraction of its size, at least
LEAST = 4  # times the side that it is resized to
_ORIGINAL = (-1, -1)  # key of its info, the size before
# EXIF orientation -> what sets the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(ValueError):
    """A file that cannot be decoded into pixels: missing, damaged, not an image, or far too large."""


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
        shape = (preprocess["channels"], *_sides(preprocess))
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
        chosen, rough_weight = self.setting(at, threshold)
        records: list[dict] = []
        with ThreadPoolExecutor(os.cpu_count()) as decoders:
            ahead = decoders.map(self.decode, images[: self.batch_size])
            for start in range(self.batch_size, len(images) + self.batch_size, self.batch_size):
                batch = list(ahead)  # the next is decoded while the networks run
                ahead = decoders.map(self.decode, images[start : start + self.batch_size])
                routed = self.infer(np.stack(batch), chosen, rough_weight)
                records += [self._record(routed, i) for i in range(len(batch))]
        return records

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


def decode(image: str | Path | Image.Image, preprocess: dict) -> np.ndarray:
    """As coe-vision decodes: upright, over white, 8 bits, bicubic to size x size.

    Raises:
        UnreadableImageError: a file that is missing, damaged or no image, too many pixels, or pixels that
            are floating-point numbers.
    """
    name = "in memory" if isinstance(image, Image.Image) else image
    try:
        if isinstance(image, Image.Image):
            pictures = _upright(image, preprocess)
        else:
            pictures = _open(Path(image), preprocess)
        pictures = [_fit(picture, preprocess) for picture in pictures]
    except (MemoryError, UnreadableImageError):
        raise
    except Exception as error:  # Pillow's plug-ins raise almost anything on a damaged file
        raise UnreadableImageError(
            f"cannot read the image {name}: {type(error).__name__}: {error}"
        ) from error
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    return pixels if pixels.ndim == 3 else np.ascontiguousarray(pixels[0].transpose(2, 0, 1))


@functools.cache
def _formats() -> list[str]:
    """Those of `FORMATS` that this installation decodes."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _open(path: Path, preprocess: dict) -> list[Image.Image]:
    try:
        regular = stat.S_ISREG(path.stat().st_mode)  # a pipe would wait for ever
    except FileNotFoundError as error:
        raise UnreadableImageError(f"cannot read the image {path}: no such file") from error
    if not regular:
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise UnreadableImageError(f"cannot read the image {path}: it is {kind}, not a file")
    with Image.open(path, formats=_formats()) as image:
        _check_pixels(path, image.width * image.height, f"{image.width} x {image.height}")
        if image.format in ("JPEG", "MPO") and image.width * image.height > LARGE_JPEG:
            side = int(max(_sides(preprocess)) * (1.15 if preprocess["resize"] == "crop" else 1))
            before = image.size
            image.draft(None, (LEAST * side, LEAST * side))
            image.info[_ORIGINAL] = before
        halved = any(";16" in str(tile[3]) for tile in image.tile) and not image.mode.startswith(
            "I"
        )
        if halved and preprocess.get("range"):
            raise ValueError("16-bit colours lose their lower bits, so no range can be applied")
        image.load()
        return _upright(image, preprocess)


def _upright(image: Image.Image, preprocess: dict) -> list[Image.Image]:
    turn = None
    with contextlib.suppress(Exception):  # a damaged EXIF block leaves the picture as it is
        orientation = image.getexif().get(_ORIENTATION, 1)
        turn = _UPRIGHT.get(orientation)
        if orientation in (5, 6, 7, 8) and _ORIGINAL in image.info:
            image.info[_ORIGINAL] = image.info[_ORIGINAL][::-1]
    pictures = _convert(image, preprocess)
    return pictures if turn is None else [picture.transpose(turn) for picture in pictures]


def _check_pixels(name: str | Path, pixels: float, shown: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise UnreadableImageError(
            f"cannot read the image {name}: {shown} pixels, above the limit of {limit}"
        )


def _convert(image: Image.Image, preprocess: dict) -> list[Image.Image]:
    """One picture, grey or in colour; of other channels a grey one for each."""
    channels, values = preprocess["channels"], preprocess.get("range")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_eight_bits(np.asarray(image), values))
    transparent = "transparency" in image.info
    if channels in (1, 3):
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or transparent:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return [image.convert("L" if channels == 1 else "RGB")]
    if image.mode in ("1", "P", "PA", "RGBa", "La"):
        plain = {"1": "L", "P": "RGBA" if transparent else "RGB", "La": "LA"}
        image = image.convert(plain.get(image.mode, "RGBA"))
    if len(image.getbands()) != channels:
        raise ValueError(f"it has {len(image.getbands())} channels, the networks take {channels}")
    return list(image.split())


def _eight_bits(pixels: np.ndarray, values: Sequence[float] | None) -> np.ndarray:
    if values is None:
        if pixels.dtype.kind == "f":
            raise ValueError("floating-point pixels have no agreed range; save as 8 or 16 bits")
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"pixels from {pixels.min()} to {pixels.max()} are no 16 bits")
        return ((pixels.astype(np.int64) + 128) // 257).astype(np.uint8)
    scaled = (pixels.astype(np.float64) - values[0]) * (255 / (values[1] - values[0]))
    if np.isnan(scaled).any():
        raise ValueError("pixels that are no numbers (NaN)")
    return np.floor(scaled.clip(0, 255) + 0.5).astype(np.uint8)


def _sides(preprocess: dict) -> tuple[int, int]:
    """Height and width of the input."""
    size = preprocess["size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _fit(image: Image.Image, preprocess: dict) -> Image.Image:
    """Resize to the input's sides; a crop is the middle of a picture just large enough for 1.15 of them."""
    height, width = _sides(preprocess)
    if preprocess["resize"] != "crop":
        if image.size == (width, height):
            return image
        return image.resize((width, height), Image.Resampling.BICUBIC)
    high, wide = int(height * 1.15), int(width * 1.15)
    x, y = image.info.get(_ORIGINAL, image.size)
    # The longer side is rounded once, as torchvision does; a ratio kept aside would round it twice.
    size = (wide, int(wide * y / x)) if x * high <= y * wide else (int(high * x / y), high)
    shown = f"{x} x {y}, enlarged for a crop of {height} x {width}, has too many"
    _check_pixels("in memory", size[0] * size[1], shown)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - width) / 2.0), round((size[1] - height) / 2.0)
    return image.crop((left, top, left + width, top + height))


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
    runner.setting(chosen.at, chosen.threshold)
    for name in chosen.images:
        try:
            record = runner([name], chosen.at, chosen.threshold)[0]
        except (UnreadableImageError, MemoryError) as error:
            record, failed = {"error": str(error) or "not enough memory"}, 1
        # Names that are not UTF-8 are written with their bytes as escapes.
        print(json.dumps({"file": os.fspath(name), **record}), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
