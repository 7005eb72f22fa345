#!/bin/sh
# Multi30k English-German, small enough for one CPU core.
#   sh recipes/translation/multi30k.sh DATA OUT [SEED]
# DATA holds train, val, test_2016_flickr, test_2017_flickr, test_2017_mscoco, each .en and .de, raw text.
# UPDATES=N in the environment changes the length of the training, of all systems alike; EXPERTS, EXPERT, DELEGATOR and SUM
# the networks.
set -eu
USAGE="multi30k.sh DATA OUT [SEED]"
[ $# -ge 2 ] || { echo "usage: $USAGE" >&2; exit 2; }
DATA=$1 OUT=$2 SEED=${3:-1}
NEEDED="train val test_2016_flickr test_2017_flickr test_2017_mscoco, each .en and .de"

SOURCE=en TARGET=de
TRAIN=train VALID=val TESTS="test_2016_flickr test_2017_flickr test_2017_mscoco"
VOCABULARY=${VOCABULARY:-2000}
EXPERTS=${EXPERTS:-4}
EXPERT=${EXPERT:-80 160 3 2 4}
DELEGATOR=${DELEGATOR:-40 80 2 1 4}
# The cascade's parts, of which the first is also the single network of the team's multiply-adds without exits (where
# the delegator only selects: 1 to 2% more); then one of delegator and expert together.
SUM=${SUM:-96 192 3 2 4}
CONTROLS="expert-alone $EXPERT
delegator-alone $DELEGATOR
single-sum $SUM"
UPDATES=${UPDATES:-2500}
KEEP=3
TRAINING="--num-workers 0 --max-tokens 1000 --optimizer adam --adam-betas (0.9,0.98) --lr 5e-3
    --lr-scheduler polynomial_decay --warmup-updates 100 --total-num-update $UPDATES
    --encoder-normalize-before --decoder-normalize-before
    --dropout 0.05 --label-smoothing 0.1 --max-source-positions 256 --max-target-positions 256
    --disable-validation"
TEAM=${TEAM:-"--focus 0.6 --shared-start 0.5"}
GENERATION="--beam 5 --max-len-b 80 --batch-size 64"
AIMS="best bleu_drop=0.5 macs=75% macs=60%"
ROUTED=${ROUTED:-macs=60%}

. "$(dirname "$0")/stages.sh"
run_recipe
