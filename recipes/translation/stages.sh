# The stages of every translation recipe, from raw text to the table. A recipe sets the variables below
# and reads this file; nothing here is specific to a corpus. Every stage that is finished is skipped when
# the recipe is run again; a training that was stopped goes on where it stood.
#
# SOURCE TARGET           languages, the endings of the texts
# TRAIN VALID TESTS       names of the texts in the data folder, without their endings; TESTS may be several
# VOCABULARY              pieces of the joint SentencePiece vocabulary
# EXPERTS                 number of experts
# EXPERT DELEGATOR        sizes: width, inner width, encoder layers, decoder layers, heads
# SINGLES                 controls beside these two: lines "NAME sizes..."
# TRAINING                options of fairseq-train that all systems have in common
# TEAM                    options of the team's training alone
# UPDATES                 length of the training
# KEEP                    checkpoints to average
# GENERATION              options of generation that all systems have in common
# AIMS                    of coe-translation calibrate

BIN=${COE_BIN:-.venv/bin}
DEVICE=${DEVICE---cpu}  # DEVICE= in the environment: on the GPU
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} PYTHONWARNINGS=${PYTHONWARNINGS:-ignore}

say() { printf '\n== %s  %s\n' "$(date +%H:%M:%S)" "$*"; }
fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 2; }

finished() { [ -e "$OUT/stages/$1" ]; }
finish() { mkdir -p "$OUT/stages" && touch "$OUT/stages/$1"; }

# Width, inner width, encoder layers, decoder layers, heads -> options of a plain transformer.
plain() {
    echo "--encoder-embed-dim $1 --decoder-embed-dim $1 --encoder-ffn-embed-dim $2" \
        "--decoder-ffn-embed-dim $2 --encoder-layers $3 --decoder-layers $4" \
        "--encoder-attention-heads $5 --decoder-attention-heads $5"
}

delegator() {
    echo "--delegator-embed-dim $1 --delegator-ffn-embed-dim $2 --delegator-encoder-layers $3" \
        "--delegator-decoder-layers $4 --delegator-attention-heads $5"
}

# Everything that decides the result; a folder made with other settings is refused.
settings() {
    printf '%s\n' "data $DATA" "seed $SEED" "languages $SOURCE $TARGET" "texts $TRAIN $VALID $TESTS" \
        "vocabulary $VOCABULARY" "experts $EXPERTS of $EXPERT" "delegator $DELEGATOR" "singles $SINGLES" \
        "training $TRAINING" "team $TEAM" "updates $UPDATES, $KEEP averaged" "generation $GENERATION"
}

check_inputs() {
    [ -d "$DATA" ] || fail "no folder $DATA; usage: $USAGE"
    for name in $TRAIN $VALID $TESTS; do
        for language in $SOURCE $TARGET; do
            [ -s "$DATA/$name.$language" ] || fail "$DATA/$name.$language is missing or empty; needed: $NEEDED"
        done
        "$BIN/coe-translation" check "$DATA/$name.$SOURCE" "$DATA/$name.$TARGET" >"$OUT/check.log"
    done
    settings >"$OUT/settings.new"
    if finished prepare && ! cmp -s "$OUT/settings" "$OUT/settings.new"; then
        diff "$OUT/settings" "$OUT/settings.new" >&2 || true
        rm "$OUT/settings.new"
        fail "$OUT was made with other settings (lines with <); choose another folder, or the same settings"
    fi
    mv "$OUT/settings.new" "$OUT/settings"
}

prepare() {
    finished prepare && return
    say "vocabulary of $VOCABULARY pieces, from $DATA/$TRAIN.$SOURCE and .$TARGET"
    "$BIN/coe-translation" vocabulary --size "$VOCABULARY" --out "$OUT/joint.model" \
        "$DATA/$TRAIN.$SOURCE" "$DATA/$TRAIN.$TARGET"
    for name in $TRAIN $VALID $TESTS; do
        "$BIN/coe-translation" encode --model "$OUT/joint.model" --out "$OUT/pieces" \
            "$DATA/$name.$SOURCE" "$DATA/$name.$TARGET"
    done
    tests=""
    for name in $TESTS; do tests="$tests,$OUT/pieces/$name"; done
    rm -rf "$OUT/bin"
    "$BIN/fairseq-preprocess" --source-lang "$SOURCE" --target-lang "$TARGET" --joined-dictionary \
        --trainpref "$OUT/pieces/$TRAIN" --validpref "$OUT/pieces/$VALID" --testpref "${tests#,}" \
        --destdir "$OUT/bin" >"$OUT/preprocess.log" 2>&1 || { tail -3 "$OUT/preprocess.log" >&2; exit 1; }
    finish prepare
}

# NAME, options of the architecture, the task and the criterion.
train() {
    name=$1
    shift
    finished "train-$name" && return
    say "training $name ($UPDATES updates; $OUT/$name/log)"
    mkdir -p "$OUT/$name"
    # shellcheck disable=SC2086
    "$BIN/fairseq-train" "$OUT/bin" --source-lang "$SOURCE" --target-lang "$TARGET" $DEVICE $TRAINING "$@" \
        --share-all-embeddings --max-update "$UPDATES" --seed "$SEED" --save-dir "$OUT/$name" \
        --no-epoch-checkpoints --save-interval-updates $((UPDATES / 10 > 0 ? UPDATES / 10 : 1)) \
        --keep-interval-updates "$KEEP" --no-progress-bar --log-format simple --log-interval 50 \
        >>"$OUT/$name/log" 2>&1 || { tail -3 "$OUT/$name/log" >&2; exit 1; }
    "$BIN/coe-translation" average --out "$OUT/$name.pt" "$OUT/$name"/checkpoint_*_*.pt "$OUT/$name/checkpoint_last.pt"
    grep "done training" "$OUT/$name/log" | tail -1
    finish "train-$name"
}

train_all() {
    # shellcheck disable=SC2086
    train team --user-dir "$("$BIN/coe-translation" user-dir)" --task coe_translation \
        --arch coe_transformer --num-experts "$EXPERTS" $(plain $EXPERT) $(delegator $DELEGATOR) \
        --criterion coe_label_smoothed_cross_entropy $TEAM
    single="--arch transformer --task translation --criterion label_smoothed_cross_entropy"
    # shellcheck disable=SC2086
    printf '%s\n' "expert-alone $EXPERT" "delegator-alone $DELEGATOR" "$SINGLES" |
        while read -r system sizes; do
            if [ -n "$system" ]; then train "$system" $single $(plain $sizes) </dev/null; fi
        done
}

# Set of fairseq-preprocess, name of the text: translate it by every network.
decode() {
    finished "decode-$1" && return
    say "translating $2 by every network"
    user="$("$BIN/coe-translation" user-dir)"
    set -- "$1" "$2" --control "expert-alone=$OUT/expert-alone.pt" \
        --control "delegator-alone=$OUT/delegator-alone.pt"
    for name in $(printf '%s\n' "$SINGLES" | cut -d ' ' -f 1); do
        set -- "$@" --control "single-$name=$OUT/$name.pt"
    done
    subset=$1 text=$2
    shift 2
    mkdir -p "$OUT/decoded"
    # shellcheck disable=SC2086
    "$BIN/coe-translation" decode "$OUT/bin" --path "$OUT/team.pt" "$@" --gen-subset "$subset" \
        --reference "$DATA/$text.$TARGET" --out "$OUT/decoded/$text.json" --remove-bpe sentencepiece \
        --user-dir "$user" --num-workers 0 $DEVICE $GENERATION
    finish "decode-$subset"
}

# Set, name of the text, router, threshold: the plugin itself, timed whole.
generate() {
    out="$OUT/generated/$2.$3.$(printf '%s' "$4" | sed 's/.*://; s/[=%]/-/g')"
    [ -s "$out" ] && return
    mkdir -p "$OUT/generated"
    # shellcheck disable=SC2086
    "$BIN/fairseq-generate" "$OUT/bin" --user-dir "$("$BIN/coe-translation" user-dir)" \
        --task coe_translation --path "$OUT/team.pt" --router "$3" --threshold "$4" --gen-subset "$1" \
        --remove-bpe sentencepiece --num-workers 0 $DEVICE $GENERATION >"$out.part" 2>"$out.log" ||
        { tail -3 "$out.log" >&2; exit 1; }
    mv "$out.part" "$out"
    printf '%s  %s\n' "$(basename "$out")" "$(grep -ho 'Translated .*' "$out" "$out.log" | tail -1)"
}

evaluate() {
    decode valid "$VALID"
    say "fitting thresholds on $VALID"
    # shellcheck disable=SC2086
    "$BIN/coe-translation" calibrate "$OUT/decoded/$VALID.json" $AIMS --out "$OUT/thresholds.json"
    subset=test number=0
    for text in $TESTS; do
        [ $number -eq 0 ] || subset=test$number
        this=$subset
        decode "$this" "$text"
        say "$text"
        generate "$this" "$text" learned inf
        for aim in $AIMS; do generate "$this" "$text" learned "$OUT/thresholds.json:$aim"; done
        "$BIN/coe-translation" curve "$OUT/decoded/$text.json" --points "$OUT/thresholds.json" \
            --out "$OUT/curve/$text"
        number=$((number + 1))
    done
    say "done: $OUT/curve/*/table.csv, trade_off.csv, trade_off.png; translations in $OUT/generated"
}

run_recipe() {
    mkdir -p "$OUT"
    check_inputs
    prepare
    train_all
    evaluate
}
