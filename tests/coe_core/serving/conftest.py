"""A real server in a thread."""

from tests.served import rest, serving  # noqa: F401  # fixtures
