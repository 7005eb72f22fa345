"""The lines R-<number>, network, confidence: where they go."""

from __future__ import annotations

from collections.abc import Sequence

from translation.generation.generator import Route


class RouteWriter:
    """Writes a line for each sentence at once, so that it can be followed.

    Args:
        place: a file, which the first lines replace; "-", standard output; or "none".
    """

    def __init__(self, place: str):
        self.place = place
        self._is_ours = False  # whether the file holds our lines already

    def write(self, numbers: Sequence[int], routes: Sequence[Route]) -> None:
        """One line for each sentence.

        Raises:
            ValueError: the file cannot be written.
        """
        if self.place == "none":
            return
        lines = [
            f"R-{number}\t{route.network}\t{route.confidence:.4f}"
            for number, route in zip(numbers, routes, strict=True)
        ]
        if self.place == "-":
            print(*lines, sep="\n")
            return
        try:
            with open(self.place, "a" if self._is_ours else "w", encoding="utf-8") as file:
                print(*lines, sep="\n", file=file)
        except OSError as error:
            raise ValueError(
                f"--routes {self.place} cannot be written: {error.strerror}"
            ) from error
        self._is_ours = True
