"""Options of fairseq's task: those of ``translation``, how sentences are routed, how they are cut."""

# No "from __future__ import annotations": fairseq reads the types of dataclass fields.
from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import ChoiceEnum
from fairseq.tasks.translation import TranslationConfig

from translation.generation.routers import ROUTERS


@dataclass
class CoETranslationConfig(TranslationConfig):
    """Options of the task: those of ``translation``, and how sentences are routed."""

    router: str = field(
        default="learned",
        metadata={"help": f"who translates the sentences that do not end early: {ROUTERS}"},
    )
    threshold: str = field(
        default="inf",
        metadata={
            "help": "a sentence ends with the delegator's hypothesis when its confidence is at least this; "
            "higher means fewer exits; inf (default): none, 0: all; or FILE:AIM, a threshold that "
            "coe-translation calibrate stored, such as thresholds.json:macs=60%"
        },
    )
    confidence: ChoiceEnum(["probability", "log_probability"]) = field(  # type: ignore[valid-type]  # made here
        default="probability",
        metadata={
            "help": "confidence of a hypothesis: its length-normalised log-probability, or the "
            "exponential of it (in [0, 1], default)"
        },
    )
    routes: str = field(
        default="-",
        metadata={
            "help": "where the line R-<id>, route, confidence of each sentence goes: a file, - (standard "
            "output, default) or none; with --results-path only a file keeps them beside the rest"
        },
    )
    init_experts: Optional[str] = field(
        default=None,
        metadata={
            "help": "checkpoint of a plain transformer that every expert starts as; same sizes and dictionary"
        },
    )
    subword_sampling: float = field(
        default=0.0,
        metadata={
            "help": "cut every training sentence anew in each epoch (subword regularisation): of a unigram "
            "vocabulary the exponent of the probabilities of its segmentations, such as 0.1; of bpe the "
            "probability of leaving out a merge (BPE-dropout), such as 0.1; 0 (default): as the data are cut"
        },
    )
    subword_model: Optional[str] = field(
        default=None, metadata={"help": "SentencePiece's model that the data were cut by"}
    )
    subword_sides: ChoiceEnum(["both", "source"]) = field(  # type: ignore[valid-type]  # made here
        default="both", metadata={"help": "which sides --subword-sampling is of"}
    )
