#!/usr/bin/env bash
# Usage: train.sh SETTINGS
#
# Train one model for all directions on $WORK_DIR/binary, with checkpoints in $WORK_DIR/model. An
# interrupted training goes on from its last checkpoint. To train on several machines that share
# $WORK_DIR, start this step on each of them.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

user_dir=$(taskmoe user-dir)
mkdir -p "$WORK_DIR/model"
data=$WORK_DIR/binary
for ((shard = 2; ; shard++)); do
    [[ -d $WORK_DIR/binary/shard$shard ]] || break
    data+=:$WORK_DIR/binary/shard$shard
done
"${LAUNCHER[@]}" fairseq-train "$data" --user-dir "$user_dir" --save-dir "$WORK_DIR/model" \
    "${TASK_FLAGS[@]}" "${MODEL_FLAGS[@]}" "${CRITERION_FLAGS[@]}" "${TRAIN_FLAGS[@]}" "${MACHINE_FLAGS[@]}"
touch "$WORK_DIR/model/finished"
