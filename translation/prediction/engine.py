"""What translates sentences, whatever computes it: fairseq's networks or an export's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from coe_core.errors import CoEError

if TYPE_CHECKING:
    from coe_core.threads import Threads

EMPTY, OVER_LONG = "empty", "over-long"  # routes of lines that nothing runs for


class TranslatorError(CoEError):
    """A run, an export or a checkpoint cannot be translated with as asked."""


class Search(NamedTuple):
    """How translations are searched; names are those of a recipe's generation."""

    beam: int = 5
    lenpen: float = 1.0
    max_len: int = 200

    def changed(self, beam: int | None, lenpen: float | None, max_len: int | None) -> Search:
        """The same with what is given.

        Raises:
            ValueError: a number out of its range.

        Example:
            >>> Search().changed(1, None, None)
            Search(beam=1, lenpen=1.0, max_len=200)
        """
        search = Search(
            self.beam if beam is None else beam,
            self.lenpen if lenpen is None else lenpen,
            self.max_len if max_len is None else max_len,
        )
        for name, most in (("beam", 1000), ("max_len", 100_000)):
            if not 1 <= getattr(search, name) <= most:
                raise ValueError(f"{name} must be in [1, {most}], got {getattr(search, name)}")
        if not -100 <= search.lenpen <= 100:
            raise ValueError(f"lenpen must be in [-100, 100], got {search.lenpen}")
        return search


class Setting(NamedTuple):
    """A budget, resolved.

    Attributes:
        name: of the operating point, or what was asked for.
        system: that translates.
        threshold: a sentence ends with the delegator when its confidence is at least this.
        exit_rate: that calibration expects; None: unknown, or nothing can end early.
        num_samples: of calibration.
    """

    name: str
    system: str
    threshold: float = math.inf
    exit_rate: float | None = None
    num_samples: int = 0


class Decoded(NamedTuple):
    """A sentence as it was translated.

    Attributes:
        texts: of the hypotheses, best first.
        route: network that translated it: "delegator", "expert-2", or the name of a single one.
        confidence: of the delegator's best hypothesis, or of a single network's; NaN: not known.
        macs: multiply-adds spent.
    """

    texts: list[str]
    route: str
    confidence: float
    macs: float


class Engine(Protocol):
    """Networks that translate sentences in pieces. One batch at a time: callers take turns."""

    name: str  # of what was loaded, for messages and pages
    targets: list[str]  # languages of which a source must say one; mostly none
    samples: list[str]  # lines to try it with, that everybody may see; mostly none
    search: Search  # where none is asked for

    @property
    def longest(self) -> int:
        """Pieces of a sentence that the networks take."""

    @property
    def systems(self) -> list[str]:
        """What can be asked for: "CoE", "cascade", "single:NAME", ..."""

    def cut(self, line: str) -> list[str]:
        """Pieces of a line of text."""

    def knows(self, piece: str) -> bool:
        """Whether the networks have seen a piece."""

    def resolve(
        self,
        budget: str | float | None,
        threshold: float | None,
        system: str | None,
        search: Search,
    ) -> Setting:
        """The system and the threshold for a budget.

        Raises:
            ValueError: no such point or system, or one that was fitted with another search.
        """

    def decode(
        self, sentences: Sequence[list[str]], setting: Setting, search: Search, nbest: int
    ) -> list[Decoded]:
        """Translate sentences that are not empty and not too long, as one batch."""

    def choose_threads(self, max_tokens: int) -> Threads | None:
        """Compute with as many threads as translate a batch fastest, and say why; None: not ours to say.

        Args:
            max_tokens: of a batch.
        """

    def facts(self, system: str | None = None) -> dict:
        """For a page: networks and their cost, operating points, and the curve if there is one.

        Args:
            system: that translates whatever is asked for; None: the one of each operating point.
        """
