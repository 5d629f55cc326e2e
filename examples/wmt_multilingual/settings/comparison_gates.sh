# The comparison of ways to train task gates, on the demo's text: English to and from four languages. Made for
# comparison.sh; what is not a matter of gates is the demo's.

: "${DATA:=gates}"
: "${WORK_DIR:=$EXAMPLE/out/comparison/$DATA}"
: "${JOBS:=1}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
source "$EXAMPLE/settings/demo.sh"

BASELINE=balance_0
SYSTEMS=${SYSTEMS:-"balance_0 balance_0.01 balance_0.1 z_loss jitter static"}
: "${SYSTEM:=$BASELINE}"
: "${SEEDS:=1}"
: "${SEED:=1}"
ZERO_SHOT_PAIRS='' TEACHER_DIR='' SUBNETS=none
case $SYSTEM in
    balance_*) CRITERION_FLAGS+=(--moe-task-gate-loss-wt "${SYSTEM#balance_}") ;;
    z_loss) CRITERION_FLAGS+=(--moe-z-loss-wt 0.001) ;;
    jitter) MODEL_FLAGS+=(--moe-router-jitter 0.1) ;;
    static) MODEL_FLAGS+=(--moe-task-gate static) ;;
    *) fail "SYSTEM=$SYSTEM: no such system; choose from $SYSTEMS" 2 ;;
esac
TRAIN_FLAGS+=(--log-format json --log-interval 50 --seed "$SEED")
