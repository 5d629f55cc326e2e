#!/usr/bin/env bash
# Usage: extract.sh SETTINGS
#
# Cut out a small model for every direction: $WORK_DIR/subnets/SRC-TGT/ for stock fairseq, and
# $WORK_DIR/ctranslate2/SRC-TGT/ for CTranslate2, with 8-bit weights. Both are compared with the full model
# on a sample of the test set.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

extract() {
    local out=$1
    shift
    [[ ! -e $out ]] || return 0
    rm -rf "$out.partial"
    fairseq-extract-subnet "$WORK_DIR/binary" --path "$WORK_DIR/model/$CHECKPOINT" --lang-pairs "$LANG_PAIRS" \
        --output-dir "$out.partial" "$@"
    mv "$out.partial" "$out"
}
extract "$WORK_DIR/subnets" --verify 20
extract "$WORK_DIR/ctranslate2" --format ctranslate2 --quantization int8 \
    --sentencepiece-model "$WORK_DIR/vocabulary/spm.model"
