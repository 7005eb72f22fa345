# The stages of every translation recipe, from raw text to the table. A recipe sets the variables below
# and reads this file; nothing here is specific to a corpus. Every stage that is finished is skipped when
# the recipe is run again; a training that was stopped goes on where it stood.
#
# SOURCE TARGET           languages, the endings of the texts
# TRAIN VALID TESTS       names of the texts in the data folder, without their endings; TESTS may be several
# VOCABULARY              pieces of the joint SentencePiece vocabulary
# PIECES                  unigram (default) or bpe: how SentencePiece cuts words
# EXPERTS                 number of experts
# EXPERT DELEGATOR        sizes: width, inner width, encoder layers, decoder layers, heads
# CONTROLS                plain networks beside the team: lines "NAME sizes..."; a cascade is made of those
#                         named expert-alone and delegator-alone
# TRAINING                options of fairseq-train that all systems have in common
# TEAM                    options of the team's training alone
# UPDATES                 length of the training
# KEEP                    checkpoints to average
# GENERATION              options of generation that all systems have in common
# AIMS                    of coe-translation calibrate
# ROUTED                  those of the aims at which fairseq-generate itself translates the tests, timed whole
# CORPUS                  of recipes that make their texts first (make_text): what the user supplied
# TOGETHER                yes: the controls train beside the team, not after it (two processes)

if [ -z "${COE_BIN:-}" ] && [ ! -x .venv/bin/coe-translation ] && command -v coe-translation >/dev/null; then
    COE_BIN=$(dirname "$(command -v coe-translation)")
fi
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

control_names() { printf '%s\n' "$CONTROLS" | sed 's/^ *//; s/ .*//; /^$/d'; }

# Everything that decides the result; a folder made with other settings is refused.
settings() {
    printf '%s\n' "data $DATA" "seed $SEED" "languages $SOURCE $TARGET" "texts $TRAIN $VALID $TESTS" \
        "vocabulary $VOCABULARY ${PIECES:-unigram}" "experts $EXPERTS of $EXPERT" "delegator $DELEGATOR" \
        "controls $CONTROLS" "training $TRAINING" "team $TEAM" "updates $UPDATES, $KEEP averaged" \
        "generation $GENERATION"
}

check_settings() {
    [ -x "$BIN/coe-translation" ] || fail "no command $BIN/coe-translation; install the package with its" \
        "extra [translation], and give COE_BIN, the folder of its commands"
    case $UPDATES in '' | *[!0-9]* | 0*) fail "UPDATES must be a whole number above 0, got '$UPDATES'" ;; esac
    case $SEED in '' | *[!0-9]*) fail "SEED must be a whole number, got '$SEED'" ;; esac
}

# Kind of a corpus, options of coe-translation corpus: CORPUS -> the texts in DATA.
make_text() {
    check_settings
    if [ -e "$OUT/corpus" ] && [ "$(cat "$OUT/corpus")" != "${CORPUS:-} $*" ]; then
        fail "$OUT was made of another corpus ($(cat "$OUT/corpus")); choose another folder, or the same corpus"
    fi
    finished text && return
    say "texts of ${CORPUS:-$1}"
    made="${CORPUS:-} $*" kind=$1
    shift
    "$BIN/coe-translation" corpus "$kind" ${CORPUS:+"$CORPUS"} --out "$DATA" "$@"
    printf '%s\n' "$made" >"$OUT/corpus"
    finish text
}

check_inputs() {
    check_settings
    [ -d "$DATA" ] || fail "no folder $DATA; usage: $USAGE"
    for name in $TRAIN $VALID $TESTS; do
        for language in $SOURCE $TARGET; do
            [ -s "$DATA/$name.$language" ] || fail "$DATA/$name.$language is missing or empty; needed: $NEEDED"
        done
        "$BIN/coe-translation" check "$DATA/$name.$SOURCE" "$DATA/$name.$TARGET" >/dev/null
    done
    mkdir -p "$OUT"
    settings >"$OUT/settings.new"
    if [ -e "$OUT/settings" ] && ! cmp -s "$OUT/settings" "$OUT/settings.new"; then
        diff "$OUT/settings" "$OUT/settings.new" >&2 || true
        rm "$OUT/settings.new"
        fail "$OUT was made with other settings (lines with <); choose another folder, or the same settings"
    fi
    mv "$OUT/settings.new" "$OUT/settings"
}

prepare() {
    finished prepare && return
    say "vocabulary of $VOCABULARY pieces, from $DATA/$TRAIN.$SOURCE and .$TARGET"
    "$BIN/coe-translation" vocabulary --size "$VOCABULARY" --kind "${PIECES:-unigram}" --out "$OUT/joint.model" \
        "$DATA/$TRAIN.$SOURCE" "$DATA/$TRAIN.$TARGET"
    set --
    for name in $TRAIN $VALID $TESTS; do set -- "$@" "$DATA/$name.$SOURCE" "$DATA/$name.$TARGET"; done
    "$BIN/coe-translation" encode --model "$OUT/joint.model" --out "$OUT/pieces" "$@"
    tests=""
    for name in $TESTS; do tests="$tests,$OUT/pieces/$name"; done
    rm -rf "$OUT/bin"
    "$BIN/fairseq-preprocess" --source-lang "$SOURCE" --target-lang "$TARGET" --joined-dictionary \
        --trainpref "$OUT/pieces/$TRAIN" --validpref "$OUT/pieces/$VALID" --testpref "${tests#,}" \
        --destdir "$OUT/bin" >"$OUT/preprocess.log" 2>&1 || { tail -3 "$OUT/preprocess.log" >&2; exit 1; }
    finish prepare
}

# What fairseq-train logs -> a line for every tenth of the training. (Not by awk: some read ahead.)
progress() {
    before="" then=0
    while IFS= read -r line; do
        case $line in *num_updates=*) ;; *) continue ;; esac
        updates=${line##*num_updates=} loss=${line#* loss=} now=$(date +%s)
        updates=${updates%%[!0-9]*}
        if [ -z "$before" ]; then before=$updates then=$now; continue; fi
        done=$((updates - before)) seconds=$((now - then))
        [ $done -ge $((UPDATES / 10)) ] && [ $done -gt 0 ] && [ $seconds -gt 0 ] || continue
        before=$updates then=$now
        printf '%s: %d of %d updates, %d.%d a second, %d s left, loss %s\n' "$1" "$updates" "$UPDATES" \
            $((done / seconds)) $((done * 10 / seconds % 10)) $(((UPDATES - updates) * seconds / done)) \
            "${loss%%,*}"
    done
}

# NAME, options of the architecture, the task and the criterion.
train() {
    name=$1
    shift
    finished "train-$name" && return
    say "training $name ($UPDATES updates; $OUT/$name/log)"
    mkdir -p "$OUT/$name"
    last=$OUT/$name/checkpoint_last.pt
    # fairseq copies this file into place, so a stop may have left a part of it.
    if [ -e "$last" ] && ! "$BIN/python" -m zipfile -l "$last" >/dev/null 2>&1; then
        rm "$last"
        whole=$(ls -t "$OUT/$name"/checkpoint_*_*.pt 2>/dev/null | head -1)
        if [ -n "$whole" ]; then cp "$whole" "$last"; fi
    fi
    # shellcheck disable=SC2086
    { "$BIN/fairseq-train" "$OUT/bin" --source-lang "$SOURCE" --target-lang "$TARGET" $DEVICE $TRAINING "$@" \
        --share-all-embeddings --max-update "$UPDATES" --seed "$SEED" --save-dir "$OUT/$name" \
        --no-epoch-checkpoints --save-interval-updates $((UPDATES / 10 > 0 ? UPDATES / 10 : 1)) \
        --keep-interval-updates "$KEEP" --no-progress-bar --log-format simple \
        --log-interval $((UPDATES / 20 > 0 ? UPDATES / 20 : 1)) 2>&1 && touch "$OUT/$name/trained"; } |
        tee -a "$OUT/$name/log" | progress "$name"
    [ -e "$OUT/$name/trained" ] || { tail -3 "$OUT/$name/log" >&2; exit 1; }
    set -- "$OUT/$name"/checkpoint_*_*.pt
    [ -e "$1" ] || set -- # fairseq writes none where every one falls on the end of an epoch
    "$BIN/coe-translation" average --out "$OUT/$name.pt" "$@" "$last"
    finish "train-$name"
}

train_team() {
    # shellcheck disable=SC2046,SC2086
    train team --user-dir "$("$BIN/coe-translation" user-dir)" --task coe_translation \
        --arch coe_transformer --num-experts "$EXPERTS" $(plain $EXPERT) $(delegator $DELEGATOR) \
        --criterion coe_label_smoothed_cross_entropy $TEAM
}

train_controls() {
    # shellcheck disable=SC2046,SC2086
    for system in $(control_names); do
        sizes=$(printf '%s\n' "$CONTROLS" | sed -n "s/^ *$system //p")
        # The plugin, though nothing of it is used: without it a checkpoint of fairseq's does not load on torch >= 2.6.
        train "$system" --user-dir "$("$BIN/coe-translation" user-dir)" --arch transformer --task translation \
            --criterion label_smoothed_cross_entropy $(plain $sizes)
    done
}

train_all() {
    if [ "${TOGETHER:-no}" = yes ]; then
        train_controls &
        beside=$!
        train_team
        wait $beside
    else
        train_team
        train_controls
    fi
}

# Set of fairseq-preprocess, name of the text: translate it by every network.
decode() {
    finished "decode-$1" && return
    say "translating $2 by every network"
    subset=$1 text=$2
    set --
    for name in $(control_names); do set -- "$@" --control "$name=$OUT/$name.pt"; done
    mkdir -p "$OUT/decoded"
    # shellcheck disable=SC2086
    "$BIN/coe-translation" decode "$OUT/bin" --path "$OUT/team.pt" "$@" --gen-subset "$subset" \
        --reference "$DATA/$text.$TARGET" --out "$OUT/decoded/$text.json" --remove-bpe sentencepiece \
        --user-dir "$("$BIN/coe-translation" user-dir)" --num-workers 0 $DEVICE $GENERATION
    finish "decode-$subset"
}

# Set, name of the text, threshold: the plugin itself, timed whole.
generate() {
    out="$OUT/generated/$2.$(printf '%s' "$3" | sed 's/.*://; s/[=%]/-/g')"
    [ -s "$out" ] && return
    mkdir -p "$OUT/generated"
    # shellcheck disable=SC2086
    "$BIN/fairseq-generate" "$OUT/bin" --user-dir "$("$BIN/coe-translation" user-dir)" \
        --task coe_translation --path "$OUT/team.pt" --threshold "$3" --gen-subset "$1" \
        --remove-bpe sentencepiece --num-workers 0 $DEVICE $GENERATION >"$out.part" 2>"$out.log" || {
        rm -f "$out.part"
        grep -q "has no threshold named" "$out.log" && return # calibrate has said why
        tail -3 "$out.log" >&2
        exit 1
    }
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
        for aim in ${ROUTED:-}; do generate "$this" "$text" "$OUT/thresholds.json:$aim"; done
        "$BIN/coe-translation" curve "$OUT/decoded/$text.json" --points "$OUT/thresholds.json" \
            --out "$OUT/curve/$text"
        number=$((number + 1))
    done
    say "in $OUT: curve/*/table.csv, trade_off.csv, trade_off.png and translations"
}

run_recipe() {
    check_inputs
    prepare
    train_all
    evaluate
}
