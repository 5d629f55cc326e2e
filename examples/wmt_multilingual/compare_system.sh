#!/usr/bin/env bash
# Usage: SYSTEM=... SEED=... DATA_DIR=... WORK_DIR=... RATE=... RESULT=... compare_system.sh SETTINGS
#
# Train one system in WORK_DIR on the text of DATA_DIR with the learning rate that the file RATE names, translate with it
# and with its subnets, and write what it reached to the file RESULT.

if [[ ${RATE-} ]]; then
    LEARNING_RATE=$(sed -n 's/^ "chosen": "\(.*\)".*/\1/p' "$RATE")
    export LEARNING_RATE
fi

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$EXAMPLE/generate.sh"

mkdir -p "$WORK_DIR"
for part in text vocabulary pieces binary; do
    [[ $TEACHER_DIR && ($part == pieces || $part == binary) ]] || ln -sfn "../$part" "$WORK_DIR/$part"
done
if [[ $TEACHER_DIR ]]; then
    [[ -f $TEACHER_DIR/model/finished ]] || fail "$SYSTEM: its teacher, $TEACHER_DIR, is not trained; run that first"
    TEACHER_DIR=$TEACHER_DIR "$EXAMPLE/distil.sh" "$1"
fi

if [[ ! -e $WORK_DIR/model/finished ]]; then
    # Seconds of the processor, which other work on the machine does not change; one line for each start and end.
    echo started >>"$WORK_DIR/train.seconds"
    TIMEFORMAT=%U
    { time "$EXAMPLE/train.sh" "$1" >>"$WORK_DIR/train.out" 2>&1; } 2>>"$WORK_DIR/train.seconds" ||
        fail "$SYSTEM: $(tail -n 1 "$WORK_DIR/train.out") (more in $WORK_DIR/train.out)"
fi

user_dir=$(taskmoe user-dir)
full_model() {
    fairseq_generate "$1" "$2" --user-dir "$user_dir" --path "$WORK_DIR/model/$CHECKPOINT" "${TASK_FLAGS[@]}"
}
subnet_flags=(--user-dir "$user_dir" "${TASK_FLAGS[@]}")
if [[ $SUBNETS == fold ]]; then # a stock model, for stock fairseq: see translate_subnets.sh
    subnet_flags=("${TASK_FLAGS[@]/taskmoe_translation/translation_multi_simple_epoch}" --required-batch-size-multiple 1)
fi
subnet() {
    fairseq_generate "$1" "$2" --path "$WORK_DIR/subnets/$1/model.pt" "${subnet_flags[@]}"
}

if [[ $SUBNETS != none && ! -e $WORK_DIR/subnets ]]; then
    fairseq-extract-subnet "$WORK_DIR/binary" --path "$WORK_DIR/model/$CHECKPOINT" \
        --lang-pairs "$LANG_PAIRS" --output-dir "$WORK_DIR/subnets" >"$WORK_DIR/extract.out"
fi
if [[ $TRANSLATE == yes ]]; then
    translate_all "$WORK_DIR/translations" full_model
    [[ ! $ZERO_SHOT_PAIRS ]] || LANG_PAIRS=$ZERO_SHOT_PAIRS translate_all "$WORK_DIR/zero_shot_translations" full_model
    [[ $SUBNETS == none ]] || translate_all "$WORK_DIR/subnet_translations" subnet
fi
"$EXAMPLE/record_system.py" --work-dir "$WORK_DIR" --data-dir "$DATA_DIR" --checkpoint "$CHECKPOINT" --learning-rate "$RATE" \
    --system "$SYSTEM" --seed "$SEED" --data "$DATA" --lang-pairs "$LANG_PAIRS" --zero-shot-pairs "$ZERO_SHOT_PAIRS" \
    --families "$FAMILIES" --output "$RESULT" --baselines $BASELINES \
    -- "${MODEL_FLAGS[@]}" "${CRITERION_FLAGS[@]}" "${TRAIN_FLAGS[@]}"
