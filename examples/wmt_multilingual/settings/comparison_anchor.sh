# An anchor for the comparison on Multi30k: one Transformer-Tiny from English to German alone, on lower-cased text, with
# the settings for which Wu et al. (2021, "Good for Misconceived Reasons") published a BLEU of 41.02, but an update's
# 8,192 tokens in eight batches instead of two: a processor is faster at these, and the gradients are sums over as many.
# INPUT_DIR is that of comparison_multi30k.sh.

: "${DATA:=multi30k_lowercase}"
: "${WORK_DIR:=$EXAMPLE/out/comparison/$DATA}"
: "${LANG_PAIRS:=en-de}"
: "${VOCABULARY_SIZE:=10000}"
: "${MAX_UPDATE:=8000}"
: "${SEEDS:=1}"
: "${SEED:=1}"
: "${WORKERS:=2}"
: "${JOBS:=1}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# PyTorch then asks for huge pages, which leaves the kernel a quarter of the work.
export THP_MEM_ALLOC_ENABLE=${THP_MEM_ALLOC_ENABLE:-1}

BASELINE=dense SYSTEMS=dense SYSTEM=dense
ZERO_SHOT_PAIRS='' TEACHER_DIR='' SUBNETS=none

TEXT_COMMAND=(
    "$EXAMPLE/get_files.py" --input-dir "${INPUT_DIR:?set it to the directory of the text}" --lang-pairs "$LANG_PAIRS"
    --lowercase
)
VOCABULARY_FLAGS=(--size "$VOCABULARY_SIZE")
TASK_FLAGS=(--task taskmoe_translation --langs en,de --lang-pairs "$LANG_PAIRS")
MODEL_FLAGS=(--arch taskmoe_transformer_tiny --share-all-embeddings --dropout 0.3 --moe-freq 0)
CRITERION_FLAGS=(--criterion taskmoe_label_smoothed_cross_entropy --label-smoothing 0.1)
TRAIN_FLAGS=(
    --optimizer adam --adam-betas "(0.9, 0.98)" --lr 0.005 --lr-scheduler inverse_sqrt --warmup-init-lr 1e-7
    --warmup-updates 2000 --max-update "$MAX_UPDATE" --max-tokens 1024 --update-freq 8 --patience 10
    --num-workers 0 --no-epoch-checkpoints --log-format json --log-interval 50 --seed "$SEED"
)
CHECKPOINT=checkpoint_best.pt
GENERATE_FLAGS=(--beam 5 --max-tokens 4096)
CTRANSLATE2_FLAGS=(--beam 5 --max-tokens 4096)
