#!/bin/sh
# The demo of translation: German dates, times, numbers, amounts and durations into English. Nothing is
# downloaded: Babel (Unicode CLDR) and num2words make the corpus. About five minutes on two cores.
#   sh recipes/translation/demo.sh [OUT]        (make demo-translation; can be repeated)
set -eu
USAGE="demo.sh [OUT]"
OUT=${1:-runs/demo-translation} SEED=1
DATA=$OUT/text
NEEDED="train valid test, each .de and .en"

SOURCE=de TARGET=en
TRAIN=train VALID=valid TESTS=test
VOCABULARY=${VOCABULARY:-500}
EXPERTS=${EXPERTS:-3}
EXPERT=${EXPERT:-64 128 2 2 4}
DELEGATOR=${DELEGATOR:-48 96 2 1 4}
# As many multiply-adds as the team without exits, where the delegator only selects.
CONTROLS="single 64 128 2 2 4"
UPDATES=${UPDATES:-1000}
KEEP=3
TRAINING="--num-workers 0 --max-tokens 1500 --optimizer adam --adam-betas (0.9,0.98) --lr 8e-3
    --lr-scheduler polynomial_decay --warmup-updates 100 --total-num-update $UPDATES
    --encoder-normalize-before --decoder-normalize-before --dropout 0 --label-smoothing 0.1
    --max-source-positions 256 --max-target-positions 256 --disable-validation"
TEAM="--focus 0.3 --shared-start 0.5"
GENERATION="--beam 5 --max-len-b 100 --batch-size 100"
AIMS="bleu_drop=0.5 macs=80% macs=60%"
TOGETHER=yes

. "$(dirname "$0")/stages.sh"

# fairseq-interactive's lines -> "German -> English", and who translated. The lines of a batch come routes first.
shown() {
    tab=$(printf '\t') routes=""
    while IFS=$tab read -r kind first second; do
        case $kind in
            R-*) routes="$routes ${kind#R-}:$first,$second;" ;;
            S-*) printf '%s\n' "$first" | sed 's/ //g; s/▁/ /g; s/^ //' ;;
            D-*)
                route=${routes#* ${kind#D-}:}
                route=${route%%;*}
                printf '    -> %s    [%s, confidence %s]\n' "$second" "${route%%,*}" "${route#*,}"
                ;;
        esac
    done
}

translate() {
    PYTHONUNBUFFERED=1 "$BIN/fairseq-interactive" "$OUT/bin" --user-dir "$("$BIN/coe-translation" user-dir)" \
        --task coe_translation --path "$OUT/team.pt" --threshold "$OUT/thresholds.json:macs=80%" \
        --bpe sentencepiece --sentencepiece-model "$OUT/joint.model" --beam 5 --max-len-b 100 --cpu \
        --buffer-size "$1" 2>"$OUT/interactive.log" | shown
}

make_text numbers --train "${PAIRS:-12000}" --held-out "${HELD_OUT:-300}" --seed "$SEED"
run_recipe
if [ -t 0 ]; then
    say "type German dates, times, numbers, amounts, durations; a line each; Ctrl-D ends"
    translate 1
else
    say "a few lines, as they would be typed"
    translate 6 <<'END'
Mittwoch, 25. November 2026
14:05
zweihunderteinundvierzig
1.234,50 €
3 Stunden und 20 Minuten
vor 9 Tagen und dreizehn Euro und fünfzig Cent
END
fi
