"""Loading fairseq with the plugin, quietly."""

from __future__ import annotations

from coe_core.support.imports import put_off

# They bring scikit-learn and pandas, which take as long to import as torch, and translate nothing. That
# fairseq then knows one task and two criteria less does not matter: what it may build is listed in trust.py.
NOT_OF_TRANSLATION = (
    "fairseq.tasks.audio_classification",
    "fairseq.criterions.sentence_prediction",
    "fairseq.criterions.sentence_prediction_adapters",
)


def load_fairseq() -> None:
    """fairseq and the plugin, without the lines that its parts log while they load.

    What of fairseq needs scikit-learn waits until it is used: `NOT_OF_TRANSLATION`. This is for our own
    commands; fairseq's, given the plugin by --user-dir, have loaded all before.
    """
    import logging
    import warnings

    put_off(*NOT_OF_TRANSLATION)
    warnings.filterwarnings("ignore", module="fairseq|hydra|torch")
    warnings.filterwarnings("ignore", "(?s).*ConfigStore schema")
    for name in ("fairseq", "hydra"):
        logging.getLogger(name).setLevel(logging.WARNING)
    import translation

    translation.register()
