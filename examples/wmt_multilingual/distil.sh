#!/usr/bin/env bash
# Usage: TEACHER_DIR=... distil.sh SETTINGS
#
# Prepare the training of a student, in $WORK_DIR: the teacher's translations of the training text as binary data, but
# references where these loop, and the teacher's weights without its experts as first weights, $WORK_DIR/student.pt.
# TEACHER_DIR is the WORK_DIR of the teacher, with text, vocabulary, binary and model; the flags of the settings are the
# student's. The translations stay in $TEACHER_DIR/training_translations, for other students.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$EXAMPLE/generate.sh"
: "${TEACHER_DIR:?set it to the WORK_DIR of the teacher}"

user_dir=$(taskmoe user-dir)
# The teacher's translation of a direction's training text, in pieces, line by line.
pieces_of() {
    fairseq-generate "$TEACHER_DIR/binary" --user-dir "$user_dir" --path "$TEACHER_DIR/model/$CHECKPOINT" \
        --source-lang "${1%-*}" --target-lang "${1#*-}" --gen-subset train "${TASK_FLAGS[@]}" "${GENERATE_FLAGS[@]}" |
        tee "$2.generated" || return
    grep '^H-' "$2.generated" | cut -c 3- | sort -n | cut -f 3 >"$2"
    rm "$2.generated"
}
translations=$TEACHER_DIR/training_translations
translate_all "$translations" pieces_of

if [[ ! -e $WORK_DIR/binary ]]; then
    pieces=$WORK_DIR/pieces
    [[ -e $pieces ]] || "$EXAMPLE/student_text.py" --pieces-dir "$TEACHER_DIR/pieces" \
        --translations-dir "$translations" --lang-pairs "$LANG_PAIRS" --output-dir "$pieces"
    ln -sf "$TEACHER_DIR"/pieces/{valid,test}.* "$pieces"
    "$EXAMPLE/binarize.sh" "$1"
fi
[[ -e $WORK_DIR/student.pt ]] || "$EXAMPLE/init_student.py" \
    --teacher "$TEACHER_DIR/model/$CHECKPOINT" --output "$WORK_DIR/student.pt" -- \
    "$WORK_DIR/binary" "${TASK_FLAGS[@]}" "${MODEL_FLAGS[@]}" "${CRITERION_FLAGS[@]}" "${TRAIN_FLAGS[@]}"
