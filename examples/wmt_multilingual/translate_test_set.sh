#!/usr/bin/env bash
# Usage: TEST_SET=... translate_test_set.sh SETTINGS
#
# Get one more test set, by its name in sacrebleu, such as wmt22, or flores200, and translate it with the full model, in
# the directions of LANG_PAIRS that it has. $WORK_DIR/test_sets/TEST_SET/ gets what a WORK_DIR has of a test set: text,
# pieces, binary and translations.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${TEST_SET:?set it to the name of a test set, such as wmt22}"

directory=$WORK_DIR/test_sets/${TEST_SET//\//_}
mkdir -p "$directory"
[[ -e $directory/text ]] || "$EXAMPLE/get_test_set.py" --name "$TEST_SET" --lang-pairs "$LANG_PAIRS" \
    --download-dir "${DOWNLOAD_DIR:-$WORK_DIR/download}" --output-dir "$directory/text"
ln -sfn ../../vocabulary "$directory/vocabulary"
ln -sfn ../../model "$directory/model"
[[ -e $directory/pieces ]] || "$EXAMPLE/encode.py" --model "$WORK_DIR/vocabulary/spm.model" \
    --input-dir "$directory/text" --output-dir "$directory/pieces"
export WORK_DIR=$directory LANG_PAIRS
LANG_PAIRS=$(cat "$directory/text/directions")
[[ -e $directory/binary ]] || "$EXAMPLE/binarize.sh" "$1"
[[ -e $directory/translations/finished ]] || "$EXAMPLE/translate.sh" "$1"
