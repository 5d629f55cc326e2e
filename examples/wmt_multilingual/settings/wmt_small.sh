# The same path with two languages that have little data, Romanian and Turkish, to and from English: 817,000 sentence
# pairs, meant for one GPU and about an hour of training. Everything else is as in wmt.sh, and can be set likewise, as in:
# WORK_DIR=/data/wmt_small run.sh settings/wmt_small.sh

: "${WORK_DIR:=$EXAMPLE/out/wmt_small}"
# The names are the paper's groups; both are among its small ones, of 610,000 and 206,000 pairs.
: "${HIGH_RESOURCE=ro}"
: "${LOW_RESOURCE=tr}"
: "${VOCABULARY_SIZE:=16000}"
: "${EPOCH_SENTENCES:=2000000}"
: "${ARCH:=taskmoe_transformer}" # 6+6 layers, width 512, 8 experts
: "${ENCODER_ROUTING:=source}"
: "${OPTIMIZER:=adam}"
: "${PRECISION=fp16}"
: "${WARMUP_UPDATES:=4000}"
: "${MAX_UPDATE:=12000}"
: "${SAVE_UPDATES:=1000}"
: "${MAX_TOKENS:=16384}"
: "${UPDATE_FREQ:=1}"
source "$EXAMPLE/settings/wmt.sh"
