# Home Assistant's user interface strings, English to and from four languages, for a machine with two cores.
# Every value can be set in the environment, as in: WORK_DIR=/tmp/demo MAX_UPDATE=500 run.sh settings/demo.sh

: "${WORK_DIR:=$EXAMPLE/out/demo}"
: "${LANGS:=en,de,es,pt,sv}"
: "${LANG_PAIRS:=en-de,de-en,en-es,es-en,en-pt,pt-en,en-sv,sv-en}"
: "${VOCABULARY_SIZE:=4000}"
: "${MAX_UPDATE:=2000}"
: "${WORKERS:=1}"
: "${JOBS:=$((${GPUS:-0} > 2 ? GPUS : 2))}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

TEXT_COMMAND=(
    "$EXAMPLE/get_homeassistant.py" --lang-pairs "$LANG_PAIRS" --max-words 10 --held-out 500
    --download-dir "$WORK_DIR/download"
)
VOCABULARY_FLAGS=(--size "$VOCABULARY_SIZE")
# Training and translation must agree on these.
TASK_FLAGS=(
    --task taskmoe_translation --langs "$LANGS" --lang-pairs "$LANG_PAIRS" --encoder-langtok tgt --decoder-langtok
)
MODEL_FLAGS=(
    --arch taskmoe_transformer_tiny --share-all-embeddings --encoder-normalize-before --decoder-normalize-before
    --encoder-moe-routing source --decoder-moe-routing target --moe-expert-count 8 --moe-combine weights --moe-freq 1
    --dropout 0.0
)
CRITERION_FLAGS=(--criterion taskmoe_label_smoothed_cross_entropy --label-smoothing 0.1)
TRAIN_FLAGS=(
    --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0 --lr 0.004 --lr-scheduler polynomial_decay
    --warmup-updates 200 --total-num-update "$MAX_UPDATE" --max-update "$MAX_UPDATE" --max-tokens 1024
    --num-workers 0 --no-epoch-checkpoints --save-interval-updates 500 --keep-interval-updates 1
    --log-format simple --log-interval 25 --seed 1
)
CHECKPOINT=checkpoint_last.pt
GENERATE_FLAGS=(--beam 4 --max-tokens 4096)
CTRANSLATE2_FLAGS=(--beam 4 --max-tokens 4096)
