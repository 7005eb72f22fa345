#!/bin/sh
# WMT'14 English-German with a team of fairseq's transformer_wmt_en_de, beside the published recipe of one.
#   DEVICE= sh recipes/translation/wmt14.sh DATA OUT [SEED]
# DATA holds train, newstest2013, newstest2014, each .en and .de, raw text, one sentence a line; you supply them: train is
# Europarl v7, Common Crawl and News Commentary joined (4.5 million pairs, those over 250 words or with lengths in a ratio over
# 1.5 left out, as fairseq's prepare-wmt14en2de.sh does), and sacrebleu prints the rest
# (sacrebleu -t wmt13 -l en-de --echo src, ref; wmt14/full).
# Machine: 8 GPUs of 32 GB or more; days. fairseq-train uses all GPUs that it sees; with fewer, MORE="--update-freq 8".
# BIG=yes takes the published big architecture (transformer_vaswani_wmt_en_de_big).
# The control expert-alone is the published recipe of the single model (examples/scaling_nmt, Ott et al. 2018: Adam (0.9, 0.98),
# 5e-4 after 4000 updates, inverse square root, dropout 0.3 big, 0.1 base, smoothing 0.1, 3584 tokens on each of 8 GPUs, fp16, joint vocabulary,
# beam 4, length penalty 0.6; big: 29.3 tokenised BLEU on newstest2014 with 128 GPUs' batch; base, Vaswani et al. 2017: 27.3). One thing
# differs: 32,000 joint pieces are SentencePiece's BPE on raw text. sacreBLEU of such systems is lower by about a point.
# NOT RUN by us: we had neither the corpus nor the GPUs. The recipe is tested on a made-up corpus of the same files.
set -eu
USAGE="wmt14.sh DATA OUT [SEED]"
[ $# -ge 2 ] || { echo "usage: $USAGE" >&2; exit 2; }
DATA=$1 OUT=$2 SEED=${3:-1}
NEEDED="train newstest2013 newstest2014, each .en and .de"

SOURCE=en TARGET=de
TRAIN=train VALID=newstest2013 TESTS=newstest2014
VOCABULARY=${VOCABULARY:-32000} PIECES=bpe
EXPERTS=${EXPERTS:-4}
case ${BIG:-no} in
    yes) base="1024 4096 6 6 16" small="512 2048 3 2 8" dropout=0.3 ;;
    *) base="512 2048 6 6 8" small="256 1024 3 2 4" dropout=0.1 ;;
esac
EXPERT=${EXPERT:-$base}
DELEGATOR=${DELEGATOR:-$small}
CONTROLS="expert-alone $EXPERT
delegator-alone $DELEGATOR"
UPDATES=${UPDATES:-100000}
KEEP=5
case ${DEVICE---cpu} in *cpu*) half="" ;; *) half=--fp16 ;; esac
TRAINING="--max-tokens 3584 --optimizer adam --adam-betas (0.9,0.98) --clip-norm 0.0 --lr 5e-4
    --lr-scheduler inverse_sqrt --warmup-updates 4000 --warmup-init-lr 1e-07 --dropout $dropout
    --weight-decay 0.0 --label-smoothing 0.1 --max-source-positions 256 --max-target-positions 256
    --skip-invalid-size-inputs-valid-test $half ${MORE:-}"
TEAM=${TEAM:-"--focus 0.6 --shared-start 0.5"}
GENERATION="--beam 4 --lenpen 0.6 --max-len-b 200 --batch-size 64"
AIMS="best bleu_drop=0.5 macs=80% macs=60%"
ROUTED=${ROUTED:-macs=60%}

. "$(dirname "$0")/stages.sh"
run_recipe
