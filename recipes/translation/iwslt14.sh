#!/bin/sh
# IWSLT'14 German-English with a team of fairseq's transformer_iwslt_de_en, beside the published recipe of one.
#   DEVICE= sh recipes/translation/iwslt14.sh DATA OUT [SEED]
# DATA is the folder de-en of the archive de-en.tgz (2014-01) of the IWSLT evaluation campaign; you supply it. It is
# cut as fairseq's prepare-iwslt14.sh cuts it. One GPU; some hours.
# The control expert-alone is fairseq's published recipe of the single model (examples/translation: Adam (0.9, 0.98),
# 5e-4 after 4000 updates, inverse square root, dropout 0.3, weight decay 1e-4, smoothing 0.1, 4096 tokens, beam 5;
# about 34.5 BLEU, tokenised and lowercase). Two things differ here: 10,000 joint pieces are SentencePiece's on raw text, not
# subword-nmt's on Moses tokens, and embeddings are shared by both sides. To compare with that figure give LOWERCASE=yes and
# read "tokenised BLEU" of coe-translation score.
# NOT RUN by us: we had neither the corpus nor a GPU. The recipe is tested on a made-up corpus of the same files.
set -eu
USAGE="iwslt14.sh DATA OUT [SEED]"
[ $# -ge 2 ] || { echo "usage: $USAGE" >&2; exit 2; }
CORPUS=$1 OUT=$2 SEED=${3:-1}
DATA=$OUT/text
NEEDED="train valid test, each .de and .en"

SOURCE=de TARGET=en
TRAIN=train VALID=valid TESTS=test
VOCABULARY=${VOCABULARY:-10000} PIECES=bpe
EXPERTS=${EXPERTS:-4}
EXPERT=${EXPERT:-512 1024 6 6 4}
DELEGATOR=${DELEGATOR:-256 512 3 2 4}
CONTROLS="expert-alone $EXPERT
delegator-alone $DELEGATOR"
UPDATES=${UPDATES:-50000}
KEEP=5
TRAINING="--max-tokens 4096 --optimizer adam --adam-betas (0.9,0.98) --clip-norm 0.0 --lr 5e-4
    --lr-scheduler inverse_sqrt --warmup-updates 4000 --dropout 0.3 --weight-decay 0.0001
    --label-smoothing 0.1 ${MORE:-}"
TEAM=${TEAM:-"--focus 0.6 --shared-start 0.5"}
GENERATION="--beam 5 --max-len-b 200 --batch-size 128"
AIMS="best bleu_drop=0.5 macs=80% macs=60%"
ROUTED=${ROUTED:-macs=60%}

. "$(dirname "$0")/stages.sh"
case ${LOWERCASE:-no} in yes) set -- --lowercase ;; *) set -- ;; esac
make_text iwslt14 "$@"
run_recipe
