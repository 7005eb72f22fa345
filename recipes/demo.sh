#!/bin/sh
# The demo: train a Collaboration of Experts on handwritten digits, show its table, predict image files.
# Run by `make demo`; can be repeated (a finished run is kept and shown again).
set -eu
BIN=${COE_BIN:-.venv/bin}
RUN=runs/demo
say() { printf '\n== %s\n' "$*"; }

say "1/3 training delegator, 4 experts and the controls on digits"
"$BIN/coe-vision" train digits --out "$RUN" --resume
say "2/3 the table: the collaboration beside every control, on test data"
"$BIN/coe-vision" evaluate "$RUN"
say "3/3 predicting image files, each with its route, at half of the experts' cost"
"$BIN/coe-vision" predict "$RUN" "$RUN/evaluation/examples" --at half --system coe
say "look at $RUN/evaluation/trade_off.png and $RUN/evaluation/classes_per_expert.png"
