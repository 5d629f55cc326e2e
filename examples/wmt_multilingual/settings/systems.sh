# Read by the settings of the comparison: the flags that all systems share, and those of the system named SYSTEM.
#
# A token passes as many feed-forward weights in every system but dense_large: the two experts of 128 that it uses
# are as wide as the feed-forward network of a layer that has none, 256. Every second layer has EXPERTS experts, of
# which tasks can use two each: no more than twice the number of languages.

SYSTEMS=${SYSTEMS:-"dense source_target token_token token_target target_target dense_large pair_pair sentence_sentence switch static distilled distilled_words"}
BASELINE=dense
: "${SYSTEM:=$BASELINE}"
: "${SEEDS:=1 2}"
: "${SEED:=1}"
: "${LOG_INTERVAL:=50}"
: "${WORKERS:=2}"
: "${JOBS:=1}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# routed ENCODER DECODER: an MoE system with these routings.
routed() {
    SYSTEM_FLAGS=(
        --encoder-moe-routing "$1" --decoder-moe-routing "$2"
        --moe-expert-count "$EXPERTS" --moe-expert-ffn-dim 128 --moe-top-k 2
    )
}

# Another system's place, for a student: what it learns from.
TEACHER_DIR='' STUDENT_FLAGS=()
CRITERION_FLAGS=(--criterion taskmoe_label_smoothed_cross_entropy --label-smoothing 0.1)
# Whether subnets can be cut out of it: of both stacks (fold), of the decoder alone (partial), or of neither (none).
SUBNETS=fold
case $SYSTEM in
    dense) SYSTEM_FLAGS=(--moe-freq 0) SUBNETS=none ;;
    # As wide as it has to be to have the parameters of the MoE systems, all of which every token uses.
    dense_large)
        width=$(((EXPERTS * 128 + 256) / 2))
        SYSTEM_FLAGS=(--moe-freq 0 --encoder-ffn-embed-dim $width --decoder-ffn-embed-dim $width) SUBNETS=none
        ;;
    source_target | target_target | pair_pair) routed "${SYSTEM%_*}" "${SYSTEM#*_}" ;;
    token_target) routed token target && SUBNETS=partial ;;
    token_token | sentence_sentence) routed "${SYSTEM%_*}" "${SYSTEM#*_}" && SUBNETS=none ;;
    switch)
        SYSTEM_FLAGS=(
            --encoder-moe-routing token --decoder-moe-routing token
            --moe-expert-count $((EXPERTS / 2)) --moe-expert-ffn-dim 256 --moe-top-k 1 --moe-router-jitter 0.01
        )
        SUBNETS=none
        ;;
    static) routed source target && SYSTEM_FLAGS+=(--moe-task-gate static) ;;
    # The dense system, beginning with the teacher's weights, on the teacher's translations; then also with its word
    # distributions, a quarter of the loss.
    distilled | distilled_words)
        SYSTEM_FLAGS=(--moe-freq 0) SUBNETS=none TEACHER_DIR=$(dirname "$WORK_DIR")/token_token-$SEED
        STUDENT_FLAGS=(--finetune-from-model "$WORK_DIR/student.pt")
        [[ $SYSTEM == distilled ]] || CRITERION_FLAGS=(
            --criterion taskmoe_word_distillation --label-smoothing 0.1
            --distill-from "$TEACHER_DIR/model/checkpoint_last.pt" --distill-wt 0.25
        )
        ;;
    *) fail "SYSTEM=$SYSTEM: no such system; choose from $SYSTEMS" 2 ;;
esac

VOCABULARY_FLAGS=(--size "$VOCABULARY_SIZE")
TASK_FLAGS=(
    --task taskmoe_translation --langs "$LANGS" --lang-pairs "$LANG_PAIRS" --encoder-langtok tgt --decoder-langtok
)
MODEL_FLAGS=(
    --arch taskmoe_transformer_tiny --share-all-embeddings --encoder-normalize-before --decoder-normalize-before
    --dropout 0.0 "${SYSTEM_FLAGS[@]}"
)
TRAIN_FLAGS=(
    --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0 --lr 0.004 --lr-scheduler polynomial_decay
    --warmup-updates 400 --total-num-update "$MAX_UPDATE" --max-update "$MAX_UPDATE" --max-tokens 1024
    --num-workers 0 --no-epoch-checkpoints --save-interval-updates 1000 --keep-interval-updates 1
    --log-format json --log-interval "$LOG_INTERVAL" --seed "$SEED"
    "${STUDENT_FLAGS[@]}"
)
CHECKPOINT=checkpoint_last.pt
GENERATE_FLAGS=(--beam 4 --max-tokens 4096)
CTRANSLATE2_FLAGS=(--beam 4 --max-tokens 4096)
