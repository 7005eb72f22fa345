"""Memory for decoding: what is foreseen is at least what is used, waits for its turn, and goes back."""

import asyncio
import io
import itertools
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

import vision.data.opening
from coe_core.serving.memory import BusyMemoryError, TooMuchMemoryError, return_memory
from vision.data.preprocess import Preprocess, UnreadableImageError
from vision.serve.decoding import ImageDecoder, decoding_bytes, resizing_bytes

SETTINGS = Preprocess(size=32, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)


def file_of(mode, size, kind="png", **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


def decode(decoder, *contents):
    async def all_of_them():
        work = (decoder.decode(content, "in the body") for content in contents)
        return await asyncio.gather(*work, return_exceptions=True)

    return asyncio.run(all_of_them())


def test_pixels_are_those_of_the_predictor():
    content = io.BytesIO()
    Image.effect_noise((90, 70), 60).save(content, "jpeg")
    decoder = ImageDecoder(SETTINGS, None, 2**20, 5)
    (pixels,) = decode(decoder, content.getvalue())
    assert pixels.equal(SETTINGS.load(io.BytesIO(content.getvalue())))
    decoder.close()


def test_what_is_no_image_needs_nothing_and_is_refused():
    decoder = ImageDecoder(SETTINGS, 100, 2**20, 5)
    large = file_of("L", (20, 20))
    assert decoding_bytes(b"nothing", SETTINGS, 100) == 0
    assert decoding_bytes(large, SETTINGS, 100) == 0
    errors = decode(decoder, b"nothing", large)
    assert all(isinstance(error, UnreadableImageError) for error in errors)
    assert "20 x 20 pixels, above the limit of 100" in str(errors[1])
    decoder.close()


def test_what_never_fits_is_refused_and_what_does_waits():
    decoder = ImageDecoder(SETTINGS, None, 2_000_000, 5)
    (error,) = decode(decoder, file_of("RGBA", (400, 400)))
    assert isinstance(error, TooMuchMemoryError)
    outcomes = decode(decoder, *[file_of("RGB", (400, 400))] * 8)  # one at a time
    assert [tuple(pixels.shape) for pixels in outcomes] == [(3, 32, 32)] * 8
    decoder.close()
    decoder = ImageDecoder(SETTINGS, None, 2_000_000, 0.01)
    decoder.budget.in_use = 1_500_000
    (error,) = decode(decoder, file_of("RGB", (400, 400)))
    assert isinstance(error, BusyMemoryError)
    decoder.close()


@pytest.mark.parametrize("size", [(1, 1_000_000), (1_000_000, 1)])
@pytest.mark.parametrize("resize", ["exact", "crop"])
def test_thin_images_that_would_grow_are_foreseen(size, resize):
    thin = Preprocess(size=224, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3, resize=resize)
    need = decoding_bytes(file_of("L", size), thin, None)
    assert need >= resizing_bytes(*size, thin)
    if resize == "crop" or size[0] == 1:
        assert need > 800_000_000
        (error,) = decode(ImageDecoder(thin, None, 2**28, 5), file_of("L", size))
        assert isinstance(error, TooMuchMemoryError)


SIDE = 1600


def status(field) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def files():
    turned = Image.Exif()
    turned[0x0112] = 6
    for kind, modes, options in (
        ("png", ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), {}),
        ("png", ("P",), {"transparency": 0}),
        ("jpeg", ("L", "RGB", "CMYK"), {}),
        ("jpeg", ("RGB",), {"progressive": True}),
        ("jpeg", ("RGB",), {"exif": turned}),
        ("tiff", ("RGBA", "CMYK", "I;16"), {}),
        ("webp", ("RGB", "RGBA"), {"method": 0}),
        ("bmp", ("RGB",), {}),
        ("gif", ("P",), {}),
    ):
        for mode in modes:
            yield f"{kind} {mode} {options}", file_of(mode, (SIDE, SIDE), kind, **options)


def measure_memory(channels: int) -> None:
    settings = Preprocess(32, channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    settings.load(io.BytesIO(file_of("RGBA", (SIDE, SIDE), "webp", method=0)))  # libraries loaded
    large = ((f"large {name}", content) for name, content in files() if "jpeg" in name)
    for name, content in itertools.chain(files(), large):
        if name.startswith("large"):
            vision.data.opening.LARGE_JPEG = 2**20
        return_memory()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = status("VmRSS")
        settings.load(io.BytesIO(content))
        used = status("VmHWM") - before
        return_memory()
        assert used <= decoding_bytes(content, settings, None) + 2**21, name
        assert status("VmRSS") - before < 2**22, name


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux measures peaks")
def test_what_is_foreseen_is_enough_and_given_back(warm):
    """In a process of its own: what others allocate and give back is not to be seen."""
    program = f"import runpy; measure = runpy.run_path({__file__!r})['measure_memory']\n"
    program += "for channels in (1, 3): measure(channels)"
    done = subprocess.run(
        [warm("torch") / "python", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
