"""Errors that are ours. A caller's bad input is a ValueError; these are what can go wrong later."""


class CoEError(Exception):
    """Base of every error raised by this toolkit that is not the caller's input."""


class NotConvergedError(CoEError):
    """An iteration stopped before reaching its tolerance; no doubtful result is returned."""


class AimNotReachableError(CoEError):
    """No threshold on the trade-off curve reaches the stated aim."""


class UncountedOperatorError(CoEError):
    """A module runs an operator whose multiply-adds are not known."""


class UnequalExpertsError(CoEError):
    """Experts that were to be one network are not."""
