#!/usr/bin/env bash
# Usage: translate.sh SETTINGS
#
# Translate the whole test set in every direction with the full model: $WORK_DIR/translations/SRC-TGT.txt,
# line N being the translation of line N of the test text. Directions that are there already are left alone.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$EXAMPLE/generate.sh"

user_dir=$(taskmoe user-dir)
full_model() {
    fairseq_generate "$1" "$2" --user-dir "$user_dir" --path "$WORK_DIR/model/$CHECKPOINT" "${TASK_FLAGS[@]}"
}
translate_all "$WORK_DIR/translations" full_model
