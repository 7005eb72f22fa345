"""Collaboration of Experts inside fairseq: the folder to give to ``--user-dir``.

fairseq imports this package, and that import registers the task ``coe_translation``, the
architectures ``coe_transformer...`` and the criterion ``coe_label_smoothed_cross_entropy``. Outside
fairseq the import does next to nothing; whoever loads fairseq later calls `register`.
"""

import os
import sys

__all__ = ["register"]
FAIRSEQ = ("fairseq", "fairseq_cli", "hydra", "omegaconf")  # packages whose errors are of no kind


def register() -> None:
    """Make fairseq know the plugin. Loads fairseq; calling it again has no effect."""
    from translation.plugin import (
        criterion,  # noqa: F401
        model,  # noqa: F401
        task,  # noqa: F401
    )
    from translation.plugin.checkpoints import load_state, register_safe_classes
    from translation.plugin.trust import guard_fairseq

    register_safe_classes()
    guard_fairseq(lambda path: load_state(path, only_look=True))


def say_errors_in_one_line() -> None:
    """In fairseq's commands, say what the plugin refuses, and what fairseq does, in one line.

    A fault of our own shows where it arose.
    """
    from types import TracebackType

    from coe_core.errors import CoEError
    from coe_core.support.faults import fault_of_library, one_line

    before = sys.excepthook
    folder = os.path.dirname(os.path.abspath(__file__))
    ours = (f"{folder}{os.sep}", os.path.join(os.path.dirname(folder), "coe_core", ""))

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        last = trace
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        where = "" if last is None else last.tb_frame.f_code.co_filename
        line = None
        if isinstance(error, ValueError | CoEError) and where.startswith(ours):
            line = one_line(error)
        elif isinstance(error, Exception):
            line = fault_of_library(error, FAIRSEQ)
        if line is None:
            before(kind, error, trace)
        else:
            print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr)

    sys.excepthook = hook


def __getattr__(name: str) -> str:
    """``__version__``, looked up on first use (PEP 562)."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from coe_core.support.provenance import toolkit_version

    return toolkit_version()


if "fairseq" in sys.modules:
    register()
    say_errors_in_one_line()
