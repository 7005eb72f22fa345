"""Collaboration of Experts inside fairseq: the folder to give to ``--user-dir``.

fairseq imports this package, and that import registers the task ``coe_translation``, the
architectures ``coe_transformer...`` and the criterion ``coe_label_smoothed_cross_entropy``. Outside
fairseq the import does next to nothing; whoever loads fairseq later calls `register`.
"""

import sys

__all__ = ["register"]


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


def __getattr__(name: str) -> str:
    """``__version__``, looked up on first use (PEP 562)."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from coe_core.support.provenance import toolkit_version

    return toolkit_version()


if "fairseq" in sys.modules:
    register()
