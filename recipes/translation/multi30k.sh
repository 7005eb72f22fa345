#!/bin/sh
# Multi30k English-German, small enough for one CPU core.
#   sh recipes/translation/multi30k.sh DATA OUT [SEED]
# DATA holds train, val, test_2016_flickr, test_2017_flickr, test_2017_mscoco, each .en and .de, raw text.
# UPDATES=N in the environment changes the length of the training, of all systems alike.
set -eu
USAGE="multi30k.sh DATA OUT [SEED]"
[ $# -ge 2 ] || { echo "usage: $USAGE" >&2; exit 2; }
DATA=$1 OUT=$2 SEED=${3:-1}
NEEDED="train val test_2016_flickr test_2017_flickr test_2017_mscoco, each .en and .de"

SOURCE=en TARGET=de
TRAIN=train VALID=val TESTS="test_2016_flickr test_2017_flickr test_2017_mscoco"
VOCABULARY=${VOCABULARY:-3000}
EXPERTS=3
EXPERT="96 192 3 3 4"
DELEGATOR="64 128 2 1 4"
# As many multiply-adds as the team with about half of the sentences ending early, and with none.
SINGLES="mean 84 168 3 3 4
sum 112 224 3 3 4"
UPDATES=${UPDATES:-1600}
KEEP=3
TRAINING="--num-workers 0 --max-tokens 1500 --optimizer adam --adam-betas (0.9,0.98) --lr 4e-3
    --lr-scheduler polynomial_decay --warmup-updates 200 --total-num-update $UPDATES
    --dropout 0.1 --label-smoothing 0.1 --max-source-positions 256 --max-target-positions 256"
TEAM="--focus 0.6 --shared-start 0.5"
GENERATION="--beam 5 --max-len-b 80 --batch-size 64"
AIMS="best bleu_drop=0.5 macs=80% macs=60% macs=40%"

. "$(dirname "$0")/stages.sh"
run_recipe
