#!/usr/bin/env bash
# Usage: run.sh SETTINGS
#
# Run all steps of a settings file, from text to subnets and scores. Steps that are finished are skipped, so an
# interrupted run goes on where it stopped; delete a step's output, and that of the steps after it,
# to run it again. With UNTIL=STEP it stops after that step: download, text, vocabulary, pieces, binary, model,
# translations, scores or subnets.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

: "${UNTIL:=}"
case $UNTIL in
'' | download | text | vocabulary | pieces | binary | model | translations | scores | subnets) ;;
*) fail "UNTIL=$UNTIL: no such step (see --help)" 2 ;;
esac

# What a settings file sets, with arrays and environment variables filled in.
settings() {
    declare -p LANG_PAIRS DOWNLOAD_COMMAND TEXT_COMMAND VOCABULARY_FLAGS ENCODE_FLAGS TASK_FLAGS MODEL_FLAGS CRITERION_FLAGS TRAIN_FLAGS \
        CHECKPOINT GENERATE_FLAGS CTRANSLATE2_FLAGS
}

step() {
    local name=$1 output=$2
    shift 2
    if [[ -e $output ]]; then
        echo "== $name: done already ($output)"
    else
        echo "== $name"
        "$@"
    fi
    stop_after "$name"
}

stop_after() {
    [[ $UNTIL != "$1" ]] || exit 0
}

mkdir -p "$WORK_DIR"
if [[ ! -s $WORK_DIR/settings ]]; then
    settings >"$WORK_DIR/settings.partial"
    mv "$WORK_DIR/settings.partial" "$WORK_DIR/settings"
elif ! settings | cmp -s - "$WORK_DIR/settings"; then
    fail "$WORK_DIR: made with other settings (they are in $WORK_DIR/settings); delete it or set another WORK_DIR"
fi

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
step translations "$WORK_DIR/translations/finished" "$EXAMPLE/translate.sh" "$1"
echo "== scores"
"$EXAMPLE/score.py" --translations-dir "$WORK_DIR/translations" --text-dir "$WORK_DIR/text" \
    --lang-pairs "$LANG_PAIRS" --output "$WORK_DIR/scores.json" --tokenize "$TOKENIZE" "${GROUP_FLAGS[@]}"
stop_after scores
step subnets "$WORK_DIR/ctranslate2" "$EXAMPLE/extract.sh" "$1"
step "translations of the subnets" "$WORK_DIR/ctranslate2_translations/finished" "$EXAMPLE/translate_subnets.sh" "$1"
echo "== full model, its subnets in stock fairseq, and in CTranslate2 with 8-bit weights"
"$EXAMPLE/compare.py" --work-dir "$WORK_DIR" --lang-pairs "$LANG_PAIRS" --output "$WORK_DIR/comparison.json" \
    --tokenize "$TOKENIZE"
