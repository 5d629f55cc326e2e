# Your own text: INPUT_DIR holds {split}.{src}-{tgt}.{lang} or {split}.{lang}, with split one of train, valid, test.
# Values can be set in the environment, as in: INPUT_DIR=text LANGS=en,fi LANG_PAIRS=en-fi,fi-en run.sh settings/files.sh

: "${INPUT_DIR:?set it to the directory of your text}"
INPUT_DIR=$(realpath -m "$INPUT_DIR")
: "${WORK_DIR:=$EXAMPLE/out/$(basename "$INPUT_DIR")}"
: "${LANGS:=en,cs,de,fr}"
: "${LANG_PAIRS:=en-cs,cs-en,en-de,de-en,en-fr,fr-en}"
: "${VOCABULARY_SIZE:=8000}"
: "${ARCH:=taskmoe_transformer_tiny}"
: "${MAX_UPDATE:=20000}"
: "${MAX_TOKENS:=4096}"
: "${PRECISION=}" # bf16 or fp16 on a GPU
: "${WORKERS:=2}"
: "${JOBS:=$((${GPUS:-0} > 2 ? GPUS : 2))}"

TEXT_COMMAND=("$EXAMPLE/get_files.py" --input-dir "$INPUT_DIR" --lang-pairs "$LANG_PAIRS")
VOCABULARY_FLAGS=(--size "$VOCABULARY_SIZE")
TASK_FLAGS=(
    --task taskmoe_translation --langs "$LANGS" --lang-pairs "$LANG_PAIRS" --encoder-langtok tgt --decoder-langtok
    --sampling-method temperature --sampling-temperature 5
)
MODEL_FLAGS=(
    --arch "$ARCH" --share-all-embeddings --encoder-normalize-before --decoder-normalize-before
    --encoder-moe-routing source --decoder-moe-routing target --moe-expert-count 8 --moe-combine weights --moe-freq 1
    --dropout 0.2
)
CRITERION_FLAGS=(--criterion taskmoe_label_smoothed_cross_entropy --label-smoothing 0.1)
TRAIN_FLAGS=(
    --optimizer taskmoe_adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0 --lr 0.003 --lr-scheduler inverse_sqrt
    --warmup-updates 2000 --max-update "$MAX_UPDATE" --max-tokens "$MAX_TOKENS"
    ${PRECISION:+"--$PRECISION"} --no-epoch-checkpoints --save-interval-updates 1000 --keep-interval-updates 1
    --log-format simple --log-interval 10 --seed 1
)
CHECKPOINT=checkpoint_best.pt
GENERATE_FLAGS=(--beam 4 --max-tokens 4096)
CTRANSLATE2_FLAGS=(--beam 4 --max-tokens 4096)
