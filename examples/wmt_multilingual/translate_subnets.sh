#!/usr/bin/env bash
# Usage: translate_subnets.sh SETTINGS
#
# Translate the whole test set in every direction with that direction's subnet, without the plugin: in stock
# fairseq to $WORK_DIR/subnet_translations/, and in CTranslate2 to $WORK_DIR/ctranslate2_translations/.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$EXAMPLE/generate.sh"

# fairseq's own task drops the last sentences of a test set whose size is no multiple of this.
stock_task=("${TASK_FLAGS[@]/taskmoe_translation/translation_multi_simple_epoch}" --required-batch-size-multiple 1)
stock_fairseq() {
    fairseq_generate "$1" "$2" --path "$WORK_DIR/subnets/$1/model.pt" "${stock_task[@]}"
}
translate_all "$WORK_DIR/subnet_translations" stock_fairseq

ctranslate2() {
    local source=${1%-*} target=${1#*-}
    local text=$WORK_DIR/text/test.$1.$source
    [[ -f $text ]] || text=$WORK_DIR/text/test.$target-$source.$source
    "$EXAMPLE/translate_ctranslate2.py" --model "$WORK_DIR/ctranslate2/$1" \
        --sentencepiece-model "$WORK_DIR/vocabulary/spm.model" --input "$text" --output "$2" "${CTRANSLATE2_FLAGS[@]}"
}
translate_all "$WORK_DIR/ctranslate2_translations" ctranslate2
