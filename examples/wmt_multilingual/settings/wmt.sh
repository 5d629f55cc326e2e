# The paper's WMT set-up: English to and from fifteen languages, 467.6M parameters in layers of 32 experts.
# Values can be set in the environment, as in: WORK_DIR=/data/wmt GPUS=8 run.sh settings/wmt.sh
# The paper's best routing with subnets that are dense is target/target; the plugin's default is ENCODER_ROUTING=source.

: "${WORK_DIR:=$EXAMPLE/out/wmt}"
DOWNLOAD_DIR=$(realpath -m "${DOWNLOAD_DIR:-$WORK_DIR/download}")
# In the order of the paper's table 3: the first eight have more than a million sentence pairs.
: "${HIGH_RESOURCE=cs,fr,ru,zh,es,fi,de,et}"
: "${LOW_RESOURCE=lv,lt,ro,hi,kk,tr,gu}"
: "${IDENTIFY_LANGUAGES:=}" # a probability, such as 0.5: drop lines that are in another language
: "${VOCABULARY_SIZE:=64000}"
: "${VOCABULARY_LINES:=5000000}"
: "${TEMPERATURE:=5}"
: "${SHARD_LINES:=1000000}"
# What one epoch draws from a shard of every pair: the largest pair's share of it, 5.8% in each direction, is about a shard.
: "${EPOCH_SENTENCES:=16000000}"
: "${ARCH:=taskmoe_transformer_base}"
: "${ENCODER_ROUTING:=target}"
: "${DECODER_ROUTING:=target}"
: "${OPTIMIZER:=adafactor}"
: "${PRECISION=bf16}" # bf16, fp16, or nothing for 32 bits; with either, translation has 16 bits too
: "${WARMUP_UPDATES:=40000}"
: "${MAX_UPDATE:=300000}"
: "${SAVE_UPDATES:=5000}"
: "${AVERAGE:=5}" # checkpoints to average; 1: the best one instead
: "${TEST_SETS:=}"  # more test sets to score, such as wmt22,flores200
: "${MAX_TOKENS:=8192}"
: "${BEAM:=4}"
: "${GPUS:=1}"
((GPUS > 0)) || GPUS=1 # without a GPU, one process, and one translation at a time
: "${NODES:=1}"
: "${NODE_RANK:=0}"
: "${MASTER:=127.0.0.1:29500}"
# 32 batches an update, on however many GPUs.
: "${UPDATE_FREQ:=$(((31 + GPUS * NODES) / (GPUS * NODES)))}"
: "${WORKERS:=16}"
: "${JOBS:=$GPUS}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

LANGS=en${HIGH_RESOURCE:+,$HIGH_RESOURCE}${LOW_RESOURCE:+,$LOW_RESOURCE}
if [[ -z ${LANG_PAIRS-} ]]; then
    LANG_PAIRS=$(for lang in ${HIGH_RESOURCE//,/ } ${LOW_RESOURCE//,/ }; do echo "$lang-en,en-$lang"; done | paste -sd,)
fi
# of_languages en,de: every direction from or into one of them, as patterns.
of_languages() {
    for lang in ${1//,/ }; do echo "$lang-*,*-$lang"; done | paste -sd,
}

DOWNLOAD_COMMAND=("$EXAMPLE/get_wmt.py" --lang-pairs "$LANG_PAIRS" --download-dir "$DOWNLOAD_DIR")
TEXT_COMMAND=(
    "$EXAMPLE/clean.py" --input-dir "$WORK_DIR/corpora" --lang-pairs "$LANG_PAIRS"
    ${IDENTIFY_LANGUAGES:+--identify-languages "$IDENTIFY_LANGUAGES"}
)
VOCABULARY_FLAGS=(--size "$VOCABULARY_SIZE" --temperature "$TEMPERATURE" --max-lines "$VOCABULARY_LINES")
ENCODE_FLAGS=(--shard-lines "$SHARD_LINES")
TASK_FLAGS=(
    --task taskmoe_translation --langs "$LANGS" --lang-pairs "$LANG_PAIRS" --encoder-langtok tgt
    --sampling-method temperature --sampling-temperature "$TEMPERATURE" --virtual-data-size "$EPOCH_SENTENCES"
)
MODEL_FLAGS=(
    --arch "$ARCH" --share-all-embeddings --encoder-normalize-before --decoder-normalize-before
    --encoder-moe-routing "$ENCODER_ROUTING" --decoder-moe-routing "$DECODER_ROUTING"
)
CRITERION_FLAGS=(--criterion taskmoe_label_smoothed_cross_entropy --label-smoothing 0.1)
# The paper's learning rate of 3.0 multiplies min(step^-0.5, step * 40000^-1.5) / sqrt(512): at its peak it is this.
LEARNING_RATE=0.00066
case $OPTIMIZER in
adafactor) OPTIMIZER_FLAGS=(--optimizer adafactor --clip-threshold 1.0) ;;
adam) OPTIMIZER_FLAGS=(--optimizer taskmoe_adam --adam-betas "(0.9, 0.98)" --clip-norm 1.0) ;;
*) fail "OPTIMIZER=$OPTIMIZER: neither adafactor nor adam" 2 ;;
esac
# Adafactor works on the shape of each tensor; fairseq would make one vector of them all.
[[ $PRECISION != fp16 ]] || OPTIMIZER_FLAGS+=(--fp16-no-flatten-grads)
TRAIN_FLAGS=(
    "${OPTIMIZER_FLAGS[@]}" --lr "$LEARNING_RATE" --lr-scheduler inverse_sqrt --warmup-updates "$WARMUP_UPDATES"
    --max-update "$MAX_UPDATE" ${PRECISION:+"--$PRECISION"} --no-epoch-checkpoints --save-interval-updates "$SAVE_UPDATES"
    --keep-interval-updates 1 --log-format simple --log-interval 100 --seed 1
)
MACHINE_FLAGS=(--max-tokens "$MAX_TOKENS" --update-freq "$UPDATE_FREQ" --ddp-backend legacy_ddp --num-workers 2)
LAUNCHER=()
if ((GPUS * NODES > 1)); then
    LAUNCHER=(taskmoe launch --processes "$GPUS" --nodes "$NODES" --node-rank "$NODE_RANK" --master "$MASTER" --)
fi
CHECKPOINT=checkpoint_best.pt
GENERATE_FLAGS=(--beam "$BEAM" --max-tokens 8192 ${PRECISION:+--fp16})
CTRANSLATE2_FLAGS=(--beam "$BEAM" --max-tokens 8192)
# The paper's signature: BLEU+case.mixed+numrefs.1+smooth.exp+tok.intl, and tok.zh into Chinese.
TOKENIZE=intl
GROUP_FLAGS=(
    --group "xx-en=*-en" --group "en-xx=en-*"
    ${HIGH_RESOURCE:+--group "high-resource=$(of_languages "$HIGH_RESOURCE")"}
    ${LOW_RESOURCE:+--group "low-resource=$(of_languages "$LOW_RESOURCE")"}
)
