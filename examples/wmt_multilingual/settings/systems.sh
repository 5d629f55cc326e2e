# Read by the settings of the comparison: the flags that all systems share, and those of the system named SYSTEM.
#
# 3+3 layers of WIDTH. A token passes as many feed-forward weights in every system but dense_wide: a network of 4 WIDTH in
# every layer, or two experts of half of that, or, with merged experts, the one network that its task's experts make.

ALL_SYSTEMS="dense token_token source_target merged low_rank low_rank_language merged_low_rank dense_wide switch
    target_target static token_target distilled continued upcycled_token_token upcycled_source_target upcycled_merged"
SYSTEMS=${SYSTEMS:-$ALL_SYSTEMS}
BASELINES="dense token_token"
: "${SYSTEM:=dense}"
: "${SEEDS:=1}"
: "${SEED:=1}"
: "${WIDTH:=64}"
: "${DROPOUT:=0.0}"
: "${MAX_TOKENS:=2048}"
# The learning rate is the best of these after TRIAL_UPDATES, for each system; one alone is taken as it is.
: "${LEARNING_RATES:=0.003 0.006 0.012}"
: "${TRIAL_UPDATES:=$(((MAX_UPDATE + 9) / 10))}"
: "${SAVE_UPDATES:=$(((MAX_UPDATE + 5) / 6))}" # the validation of twenty directions takes as long as 200 updates
: "${LOG_INTERVAL:=50}"
: "${TRANSLATE:=yes}" # no: for trainings that are too short to translate with; their losses are recorded all the same
: "${WORKERS:=2}"
: "${JOBS:=1}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# PyTorch then asks for huge pages, which leaves the kernel a quarter of the work.
export THP_MEM_ALLOC_ENABLE=${THP_MEM_ALLOC_ENABLE:-1}

FFN=$((4 * WIDTH))
commas=${LANGS//[^,]/}
# Two experts a language, of which a token uses two: without learning, no language would share any.
EXPERTS=$((2 * (${#commas} + 1)))
: "${UPDATES:=$MAX_UPDATE}"

# routed ENCODER DECODER [EXPERTS]: narrow experts with these routings. Their outputs are doubled, for each is half of a
# network.
routed() {
    SYSTEM_FLAGS=(
        --moe-freq 1 --encoder-moe-routing "$1" --decoder-moe-routing "$2"
        --moe-expert-count "${3:-$EXPERTS}" --moe-expert-ffn-dim $((FFN / 2)) --moe-top-k 2 --moe-route-scale 2
    )
}
# Fewer experts than languages, which learn in the first third which of them to share.
learned() {
    routed "$1" "$2" 8 && SYSTEM_FLAGS+=(--moe-task-gate-warmup-updates $((UPDATES / 3)))
}
dense() {
    SYSTEM_FLAGS=(--moe-freq 0 --encoder-ffn-embed-dim "$1" --decoder-ffn-embed-dim "$1") SUBNETS=none
}
MERGED_FLAGS=(
    --moe-freq 1 --encoder-moe-routing source --decoder-moe-routing target --moe-expert-count 8 --moe-combine weights
)

# Another system's place, for a student: what it learns from.
TEACHER_DIR='' START_FLAGS=()
# Whether subnets can be cut out of it: of both stacks (fold), of the decoder alone (partial), or of neither (none).
SUBNETS=fold
# Those that begin with the dense system trained: dense itself, and experts made of its feed-forward networks.
if [[ $SYSTEM == continued || $SYSTEM == upcycled_* ]]; then
    START_FLAGS=(--finetune-from-model "$DATA_DIR/dense-$SEED/model/checkpoint_last.pt")
fi
name=${SYSTEM#upcycled_}
case $name in
    dense | continued) dense "$FFN" ;;
    # As wide as it has to be to have the parameters of the narrow experts, all of which every token uses.
    dense_wide) dense $((EXPERTS * FFN / 2)) ;;
    low_rank) dense "$FFN" && SYSTEM_FLAGS+=(--task-low-rank $((WIDTH / 4))) SUBNETS=fold ;;
    low_rank_language)
        dense "$FFN" && SYSTEM_FLAGS+=(--task-low-rank $((WIDTH / 4)) --task-low-rank-by language) SUBNETS=fold
        ;;
    merged) SYSTEM_FLAGS=("${MERGED_FLAGS[@]}") ;;
    merged_low_rank) SYSTEM_FLAGS=("${MERGED_FLAGS[@]}" --task-low-rank $((WIDTH / 4))) ;;
    source_target | target_target)
        # What is made of the dense system's networks is dealt, so as to compute what they do.
        if [[ $SYSTEM == upcycled_* ]]; then routed source target; else learned "${name%_*}" "${name#*_}"; fi
        ;;
    static) routed source target 8 && SYSTEM_FLAGS+=(--moe-task-gate static) ;; # the control of source_target
    token_target) routed token target && SUBNETS=partial ;;
    token_token) routed token token && SUBNETS=none ;;
    switch)
        SYSTEM_FLAGS=(
            --moe-freq 1 --encoder-moe-routing token --decoder-moe-routing token
            --moe-expert-count $((EXPERTS / 2)) --moe-top-k 1 --moe-router-jitter 0.01
        )
        SUBNETS=none
        ;;
    # The dense system, beginning with the teacher's weights, on the teacher's translations.
    distilled)
        dense "$FFN"
        TEACHER_DIR=$(dirname "$WORK_DIR")/token_token-$SEED
        START_FLAGS=(--finetune-from-model "$WORK_DIR/student.pt")
        ;;
    *) fail "SYSTEM=$SYSTEM: no such system; choose from $SYSTEMS" 2 ;;
esac

VOCABULARY_FLAGS=(--size "$VOCABULARY_SIZE")
TASK_FLAGS=(
    --task taskmoe_translation --langs "$LANGS" --lang-pairs "$LANG_PAIRS" --encoder-langtok tgt --decoder-langtok
)
MODEL_FLAGS=(
    --arch taskmoe_transformer_tiny --encoder-layers 3 --decoder-layers 3
    --encoder-embed-dim "$WIDTH" --decoder-embed-dim "$WIDTH"
    --encoder-ffn-embed-dim "$FFN" --decoder-ffn-embed-dim "$FFN"
    --share-all-embeddings --encoder-normalize-before --decoder-normalize-before --dropout "$DROPOUT" "${SYSTEM_FLAGS[@]}"
)
CRITERION_FLAGS=(--criterion taskmoe_label_smoothed_cross_entropy --label-smoothing 0.1)
# training_flags UPDATES LEARNING_RATE: how a training of so many updates goes.
training_flags() {
    TRAIN_FLAGS=(
        --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0 --lr "$2" --lr-scheduler polynomial_decay
        --warmup-updates $(($1 / 10)) --total-num-update "$1" --max-update "$1" --max-tokens "$MAX_TOKENS"
        --num-workers 0 --no-epoch-checkpoints --save-interval-updates "$SAVE_UPDATES" --keep-interval-updates 1
        --log-format json --log-interval "$LOG_INTERVAL" --seed "$SEED"
        "${START_FLAGS[@]}"
    )
}
: "${LEARNING_RATE:=${LEARNING_RATES%% *}}"
training_flags "$UPDATES" "$LEARNING_RATE"
CHECKPOINT=checkpoint_last.pt
GENERATE_FLAGS=(--beam 4 --max-tokens 4096)
CTRANSLATE2_FLAGS=(--beam 4 --max-tokens 4096)
