#!/bin/sh
# Tatoeba German-English: short sentences, small networks, a CPU or a GPU.
#   sh recipes/translation/tatoeba.sh DATA OUT [SEED]
# DATA is deu-eng.zip of manythings.org/anki, or the folder that holds it or its deu.txt. 2000 pairs each are held
# out to validate and to test, so that no sentence of either language is in two of the splits.
# UPDATES=N changes the length of the training, of all systems alike; DEVICE= (empty) trains on the GPU.
# Not run to the end: no score is claimed.
set -eu
USAGE="tatoeba.sh DATA OUT [SEED]"
[ $# -ge 2 ] || { echo "usage: $USAGE" >&2; exit 2; }
CORPUS=$1 OUT=$2 SEED=${3:-1}
DATA=$OUT/text
NEEDED="train valid test, each .de and .en"

SOURCE=de TARGET=en
TRAIN=train VALID=valid TESTS=test
VOCABULARY=${VOCABULARY:-4000}
EXPERTS=${EXPERTS:-4}
EXPERT=${EXPERT:-128 256 3 3 4}
DELEGATOR=${DELEGATOR:-64 128 2 1 4}
# The cascade's parts; then about as many multiply-adds as the team with half of the sentences ending early, with none.
CONTROLS="expert-alone $EXPERT
delegator-alone $DELEGATOR
single-mean 108 216 3 3 4
single-sum 148 296 3 3 4"
UPDATES=${UPDATES:-12000}
KEEP=5
TRAINING="--num-workers 0 --max-tokens 4000 --optimizer adam --adam-betas (0.9,0.98) --lr 4e-3
    --lr-scheduler polynomial_decay --warmup-updates 400 --total-num-update $UPDATES
    --encoder-normalize-before --decoder-normalize-before
    --dropout 0.1 --label-smoothing 0.1 --max-source-positions 256 --max-target-positions 256 ${MORE:-}"
TEAM=${TEAM:-"--focus 0.6 --shared-start 0.5"}
GENERATION="--beam 5 --max-len-b 100 --batch-size 64"
AIMS="best bleu_drop=0.5 macs=80% macs=60%"
ROUTED=${ROUTED:-macs=60%}

. "$(dirname "$0")/stages.sh"
make_text tatoeba --seed "$SEED" --held-out "${HELD_OUT:-2000}"
run_recipe
