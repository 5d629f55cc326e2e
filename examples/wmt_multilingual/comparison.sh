#!/usr/bin/env bash
# Usage: comparison.sh SETTINGS
#
# Choose a learning rate for every system of the comparison, train it with every seed (SYSTEMS and SEEDS, see
# settings/systems.sh), score it, and leave what it reached in RESULTS/SYSTEM-SEED.json (WORK_DIR/results unless set).
# What is there already is not run again, and an interrupted training goes on from its last checkpoint.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DATA_DIR=$WORK_DIR
RESULTS=${RESULTS:-$WORK_DIR/results}
mkdir -p "$DATA_DIR" "$RESULTS"

UNTIL=binary "$EXAMPLE/run.sh" "$1"

for SEED in $SEEDS; do
    for SYSTEM in $SYSTEMS; do
        result=$RESULTS/$SYSTEM-$SEED.json
        [[ ! -f $result ]] || continue
        echo "== $DATA: $SYSTEM, seed $SEED"
        rate_of=${SYSTEM/distilled/dense} # a student has what it learns from only once its teacher is trained
        rate=$DATA_DIR/learning_rates/$rate_of.json
        [[ -f $rate ]] || SYSTEM=$rate_of DATA_DIR=$DATA_DIR WORK_DIR=$DATA_DIR/learning_rates/$rate_of OUTPUT=$rate \
            "$EXAMPLE/choose_learning_rate.sh" "$1"
        SYSTEM=$SYSTEM SEED=$SEED DATA_DIR=$DATA_DIR WORK_DIR=$DATA_DIR/$SYSTEM-$SEED RATE=$rate RESULT=$result \
            "$EXAMPLE/compare_system.sh" "$1"
    done
done
