#!/usr/bin/env bash
# Usage: comparison.sh SETTINGS
#
# Train and score every system of the comparison with every seed (SYSTEMS and SEEDS, see settings/systems.sh), and leave
# what each reached in RESULTS/SYSTEM-SEED.json (docs/comparison/DATA unless set). What is there already is not run again,
# and an interrupted training goes on from its last checkpoint.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DATA_DIR=$WORK_DIR
RESULTS=${RESULTS:-$EXAMPLE/../../docs/comparison/$DATA}
mkdir -p "$DATA_DIR" "$RESULTS"

UNTIL=binary "$EXAMPLE/run.sh" "$1"

for SEED in $SEEDS; do
    for SYSTEM in $SYSTEMS; do
        result=$RESULTS/$SYSTEM-$SEED.json
        [[ ! -f $result ]] || continue
        echo "== $DATA: $SYSTEM, seed $SEED"
        SYSTEM=$SYSTEM SEED=$SEED DATA_DIR=$DATA_DIR WORK_DIR=$DATA_DIR/$SYSTEM-$SEED RESULT=$result \
            "$EXAMPLE/compare_system.sh" "$1"
    done
done
