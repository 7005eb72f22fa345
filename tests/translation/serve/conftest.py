"""A small run's translator behind a real server."""

import pytest

from tests.served import rest, serving  # noqa: F401  # fixtures
from translation.prediction.translator import Translator


@pytest.fixture(scope="session")
def translator(trained_run):
    return Translator(trained_run, device="cpu", max_tokens=300)
