"""A trained run's predictor and images, for its server."""

import io

import pytest
from PIL import Image

from tests.served import rest, serving  # noqa: F401  # fixtures


@pytest.fixture(scope="session")
def images(trained):
    """24 test images as PNG files."""
    from vision.run import load_run, load_run_data

    data = load_run_data(load_run(trained)).test
    files = [io.BytesIO() for _ in range(24)]
    for i, file in enumerate(files):
        Image.fromarray(data[i]["image"][0].numpy()).save(file, "png")
    return [file.getvalue() for file in files]


@pytest.fixture(scope="session")
def predictor(trained):
    from vision.prediction.predictor import Predictor

    return Predictor(trained, max_pixels=10_000)
