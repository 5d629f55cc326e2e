#!/usr/bin/env bash
# Usage: SYSTEM=... DATA_DIR=... WORK_DIR=DATA_DIR/learning_rates/SYSTEM OUTPUT=... choose_learning_rate.sh SETTINGS
#
# Train one system for TRIAL_UPDATES with each of LEARNING_RATES, on the data of DATA_DIR, in WORK_DIR, and write to the file
# OUTPUT which of them reached the lowest loss in validation. Interrupted trials go on from their last checkpoints. Of one
# rate alone nothing is tried.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

mkdir -p "$(dirname "$OUTPUT")"
if [[ $LEARNING_RATES != *" "* ]]; then
    printf '{\n "chosen": "%s"\n}\n' "$LEARNING_RATES" >"$OUTPUT"
    exit
fi
trials=()
for rate in $LEARNING_RATES; do
    trial=$WORK_DIR/$rate
    trials+=("$trial")
    [[ ! -e $trial/model/finished ]] || continue
    echo "learning rate $rate: $TRIAL_UPDATES updates"
    mkdir -p "$trial"
    ln -sfn ../../../binary "$trial/binary" # DATA_DIR/learning_rates/SYSTEM/RATE
    WORK_DIR=$trial UPDATES=$TRIAL_UPDATES LEARNING_RATE=$rate "$EXAMPLE/train.sh" "$1" >>"$trial/train.out" 2>&1 ||
        fail "$SYSTEM: $(tail -n 1 "$trial/train.out") (more in $trial/train.out)"
    rm -f "$trial"/model/*.pt
done
"$EXAMPLE/choose_learning_rate.py" --output "$OUTPUT" "${trials[@]}"
