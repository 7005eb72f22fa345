"""Loading fairseq with the plugin, quietly."""

from __future__ import annotations


def load_fairseq() -> None:
    """fairseq and the plugin, without the lines that its parts log while they load."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", module="fairseq|hydra|torch")
    warnings.filterwarnings("ignore", "(?s).*ConfigStore schema")
    for name in ("fairseq", "hydra"):
        logging.getLogger(name).setLevel(logging.WARNING)
    import translation

    translation.register()
