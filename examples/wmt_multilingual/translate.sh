#!/usr/bin/env bash
# Usage: translate.sh SETTINGS
#
# Translate the whole test set in every direction: $WORK_DIR/translations/SRC-TGT.txt, line N being the
# translation of line N of the test text. Directions that are there already are left alone.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

out=$WORK_DIR/translations
mkdir -p "$out"
user_dir=$(taskmoe user-dir)
for direction in ${LANG_PAIRS//,/ }; do
    [[ ! -f $out/$direction.txt ]] || continue
    echo "translating $direction"
    log=$out/$direction.log
    fairseq-generate "$WORK_DIR/binary" --user-dir "$user_dir" --path "$WORK_DIR/model/$CHECKPOINT" \
        "${TASK_FLAGS[@]}" --source-lang "${direction%-*}" --target-lang "${direction#*-}" \
        --bpe sentencepiece --sentencepiece-model "$WORK_DIR/vocabulary/spm.model" \
        "${GENERATE_FLAGS[@]}" >"$log" 2>&1 || fail "$direction: $(tail -n 1 "$log") (more in $log)"
    # fairseq prints the translations in another order; D-N is the one of line N, counted from 0.
    grep '^D-' "$log" | cut -c 3- | sort -n | cut -f 3 >"$out/$direction.partial"
    mv "$out/$direction.partial" "$out/$direction.txt"
done
touch "$out/finished"
