"""The coe-translation command, what fairseq's own commands do not do: a table of commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from coe_core.support.command import Command, Parser, build_parser, run_command
from translation import FAIRSEQ

PROGRAM = "coe-translation"
LIBRARIES = (*FAIRSEQ, "sacrebleu", "sentencepiece")  # whose errors may be about anything given
DESCRIPTION = "Beside fairseq's own commands, which take --user-dir $(coe-translation user-dir)."
_TEXTS = {  # module -> its commands
    "train": {
        "train": "Train a recipe: everything from raw text to the table, team and controls.",
        "evaluate": "Table and pictures of one run, or of several seeds, tested against every control.",
        "recipes": "List the shipped recipes, or copy one to change it.",
    },
    "plugin": {"user-dir": "Print the folder to give to fairseq's --user-dir."},
    "texts": {
        "check": "Check parallel text before fairseq-preprocess.",
        "vocabulary": "Learn a joint SentencePiece vocabulary.",
        "corpus": "Make the parallel text of a recipe: NAME.de and NAME.en.",
        "encode": "Write texts as SentencePiece pieces, for fairseq-preprocess.",
    },
    "decoding": {
        "decode": "Translate a data set by every network of a team and by every control, for calibrate and "
        "curve. All options of fairseq-generate go with it.",
        "calibrate": "Fit thresholds for stated aims on a translated validation set.",
        "curve": "BLEU and chrF against MACs and seconds: table, CSV and PNG, with all controls.",
    },
    "scores": {
        "score": "sacreBLEU with signatures and intervals, chrF, TER; by length and rarity."
    },
    "compare": {"compare": "Two systems: scores, p, buckets, and the sentences that differ most."},
    "checkpoints": {
        "average": "Average the parameters of checkpoints of one training.",
        "take": "Take one network out, as a plain fairseq checkpoint.",
    },
    "inspect": {"inspect": "Networks, sizes and costs of a recipe, a run or a checkpoint."},
    "translate": {
        "translate": "Translate lines of text with a run, an export or a checkpoint.",
        "serve": "Serve a run, an export or a checkpoint over HTTP, with a page to try it.",
    },
    "export": {
        "export": "Write a team as CTranslate2 models with a runner that routes; compare it with fairseq."
    },
}
COMMANDS = [
    Command(name, f"translation.commands.{module}", text, name.replace("-", "_"))
    for module, commands in _TEXTS.items()
    for name, text in commands.items()
]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: returns the exit status; what is wrong is said in one line on stderr."""
    return run_command(PROGRAM, DESCRIPTION, COMMANDS, argv, libraries=LIBRARIES)


def parser() -> Parser:
    """The parser of all commands."""
    return build_parser(PROGRAM, DESCRIPTION, COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
