#!/usr/bin/env bash
# Usage: run.sh SETTINGS
#
# Run all steps of a settings file, from text to subnets and scores. Steps that are finished are skipped, so an
# interrupted run goes on where it stopped. What was made with other settings is named, and is to be deleted first;
# $WORK_DIR/made_with has, for each step, the settings that it was made with. With UNTIL=STEP it stops after that step:
# download, text, vocabulary, pieces, binary, model, average, translations, scores, test_sets or subnets.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

: "${UNTIL:=}"
case $UNTIL in
'' | download | text | vocabulary | pieces | binary | model | average | translations | scores | test_sets | subnets) ;;
*) fail "UNTIL=$UNTIL: no such step (see --help)" 2 ;;
esac

# The settings that a step depends on: its own, and those of the steps that it is made from.
settings_of() {
    case $1 in
    download) echo LANG_PAIRS DOWNLOAD_COMMAND ;;
    text) echo "$(settings_of download) TEXT_COMMAND" ;;
    vocabulary) echo "$(settings_of text) VOCABULARY_FLAGS" ;;
    pieces) echo "$(settings_of vocabulary) ENCODE_FLAGS" ;;
    binary) settings_of pieces ;;
    model) echo "$(settings_of binary) TASK_FLAGS MODEL_FLAGS CRITERION_FLAGS TRAIN_FLAGS" ;;
    average) echo "$(settings_of model) AVERAGE" ;;
    translations | test_sets) echo "$(settings_of average) CHECKPOINT GENERATE_FLAGS" ;;
    subnets) echo "$(settings_of average) CHECKPOINT" ;;
    subnet_translations) echo "$(settings_of subnets) GENERATE_FLAGS CTRANSLATE2_FLAGS" ;;
    esac
}

# With what a step would be made now; arrays and environment variables are filled in. What another machine or another
# way to say the same would change is left out: whether a variable is exported, and where the example and WORK_DIR are.
made_with() {
    local settings
    # shellcheck disable=SC2046
    settings=$(declare -p $(settings_of "$1") | sed 's/^declare -[^ ]* //')
    settings=${settings//"$EXAMPLE/"/}
    echo "${settings//"$WORK_DIR/"/}"
}

record_settings() {
    made_with "$1" >"$WORK_DIR/made_with/.$1"
    mv "$WORK_DIR/made_with/.$1" "$WORK_DIR/made_with/$1"
}

# What each step makes. Where that is not all that is in the way of making it again, a colon and the rest.
OUTPUTS=(
    download=corpora text=text vocabulary=vocabulary pieces=pieces binary=binary model=model/finished
    average=model/averaged.pt translations=translations test_sets=test_sets subnets=ctranslate2:subnets
    subnet_translations=ctranslate2_translations:subnet_translations
)

# Names everything that was made with other settings.
check_settings() {
    local each step outputs old=()
    for each in "${OUTPUTS[@]}"; do
        step=${each%%=*} outputs=${each#*=}
        [[ -e $WORK_DIR/${outputs%%:*} && -f $WORK_DIR/made_with/$step ]] || continue
        made_with "$step" | cmp -s - "$WORK_DIR/made_with/$step" || old+=(${outputs//:/ })
    done
    ((${#old[@]} == 0)) || fail "$WORK_DIR: made with other settings (see made_with there): ${old[*]}; delete these \
to make them again, or set another WORK_DIR. Without model/finished training goes on from its last checkpoint"
}

step() {
    local name=$1 output=$2
    shift 2
    if [[ -e $output ]]; then
        echo "== $name: done already ($output)"
    else
        echo "== $name"
        record_settings "$name"
        "$@"
    fi
    stop_after "$name"
}

stop_after() {
    [[ $UNTIL != "$1" ]] || exit 0
}

score() {
    "$EXAMPLE/score.py" --translations-dir "$1/translations" --text-dir "$1/text" --lang-pairs "$2" \
        --output "$1/scores.json" --tokenize "$TOKENIZE" ${COMET:+--comet "$COMET"} "${GROUP_FLAGS[@]}"
}

if [[ -z $UNTIL || $UNTIL == subnets ]]; then
    python3 -c 'import ctranslate2' 2>/dev/null ||
        fail "ctranslate2: not installed, and subnets need it; pip install ctranslate2, or stop before with UNTIL=scores"
fi
mkdir -p "$WORK_DIR/made_with"
check_settings

if ((${#DOWNLOAD_COMMAND[@]})); then
    step download "$WORK_DIR/corpora" "${DOWNLOAD_COMMAND[@]}" --output-dir "$WORK_DIR/corpora"
fi
step text "$WORK_DIR/text" "${TEXT_COMMAND[@]}" --output-dir "$WORK_DIR/text"
step vocabulary "$WORK_DIR/vocabulary" "$EXAMPLE/learn_vocabulary.py" \
    --text-dir "$WORK_DIR/text" --output-dir "$WORK_DIR/vocabulary" "${VOCABULARY_FLAGS[@]}"
step pieces "$WORK_DIR/pieces" "$EXAMPLE/encode.py" \
    --model "$WORK_DIR/vocabulary/spm.model" --input-dir "$WORK_DIR/text" --output-dir "$WORK_DIR/pieces" \
    "${ENCODE_FLAGS[@]}"
step binary "$WORK_DIR/binary" "$EXAMPLE/binarize.sh" "$1"
step model "$WORK_DIR/model/finished" "$EXAMPLE/train.sh" "$1"
if ((AVERAGE > 1)); then
    step average "$WORK_DIR/model/averaged.pt" "$EXAMPLE/average.py" \
        --model-dir "$WORK_DIR/model" --count "$AVERAGE" --output "$WORK_DIR/model/averaged.pt"
fi
stop_after average
step translations "$WORK_DIR/translations/finished" "$EXAMPLE/translate.sh" "$1"
echo "== scores"
score "$WORK_DIR" "$LANG_PAIRS"
stop_after scores
for test_set in ${TEST_SETS//,/ }; do
    echo "== test set $test_set"
    record_settings test_sets
    TEST_SET=$test_set "$EXAMPLE/translate_test_set.sh" "$1"
    directory=$WORK_DIR/test_sets/${test_set//\//_}
    score "$directory" "$(cat "$directory/text/directions")"
done
stop_after test_sets
step subnets "$WORK_DIR/ctranslate2" "$EXAMPLE/extract.sh" "$1"
step subnet_translations "$WORK_DIR/ctranslate2_translations/finished" "$EXAMPLE/translate_subnets.sh" "$1"
echo "== full model, its subnets in stock fairseq, and in CTranslate2 with 8-bit weights"
"$EXAMPLE/compare.py" --work-dir "$WORK_DIR" --lang-pairs "$LANG_PAIRS" --output "$WORK_DIR/comparison.json" \
    --tokenize "$TOKENIZE"
