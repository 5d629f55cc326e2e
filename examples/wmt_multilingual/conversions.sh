#!/usr/bin/env bash
# Usage: conversions.sh settings/conversions.sh
#
# Train the systems that conversions are compared on, convert them in every way, translate with what comes out, and leave
# the figures in RESULTS/SYSTEM.CONVERSION.json (WORK_DIR/results unless set). What is there already is not done again, and
# an interrupted training goes on from its last checkpoint. SYSTEMS="merged-1 dense-1" chooses what is trained; what is
# not trained is not converted.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

: "${SENTENCES:=250}" # of the test set of each direction
SETTINGS=$1 DATA_DIR=$WORK_DIR RESULTS=${RESULTS:-$WORK_DIR/results}
: "${SYSTEMS:=merged-1 token_token-1 language_experts-1 dense-1 dense_wide-1 merged_2bits-1 merged_continued-1 merged-2
token_continued-1 token_continued-2 token_again-1 joined-1 dense_continued-1 upcycled-1}"
export DATA_DIR
mkdir -p "$DATA_DIR" "$RESULTS"
UNTIL=binary "$EXAMPLE/run.sh" "$SETTINGS"

# trained SYSTEM...: whether all of them are.
trained() {
    local system
    for system; do
        [[ -e $DATA_DIR/$system/model/finished ]] || return 1
    done
}

for SYSTEM in $SYSTEMS; do
    ! trained "$SYSTEM" || continue
    if [[ $SYSTEM == joined-1 && ! -e $DATA_DIR/joined.pt ]]; then
        taskmoe convert join "$DATA_DIR"/token_continued-{1,2}/model/"$CHECKPOINT" --output "$DATA_DIR/joined.pt"
    fi
    echo "== training $SYSTEM"
    mkdir -p "$DATA_DIR/$SYSTEM"
    ln -sfn ../binary "$DATA_DIR/$SYSTEM/binary"
    SYSTEM=$SYSTEM WORK_DIR=$DATA_DIR/$SYSTEM "$EXAMPLE/train.sh" "$SETTINGS" >>"$DATA_DIR/$SYSTEM/train.out" 2>&1 ||
        fail "$SYSTEM: $(tail -n 1 "$DATA_DIR/$SYSTEM/train.out") (more in $DATA_DIR/$SYSTEM/train.out)"
done

# record SYSTEM[+SYSTEM] CONVERSION FLAGS...: what is left of a system, or of an ensemble; no CONVERSION: of it as it is.
record() (
    name=$1${2:+.$2} systems=${1//+/ } checkpoints=()
    [[ ! -f $RESULTS/$name.json ]] || exit 0
    for system in $systems; do
        trained "$system" || exit 0
        checkpoints+=("$DATA_DIR/$system/model/$CHECKPOINT")
    done
    echo "== $name"
    SYSTEM=${systems%% *}
    source "$SETTINGS"
    "$EXAMPLE/record_conversion.py" --work-dir "$DATA_DIR" --name "$name" --lang-pairs "$LANG_PAIRS" \
        --sentences "$SENTENCES" --output "$RESULTS/$name.json" --checkpoint "${checkpoints[@]}" "${@:3}" \
        -- "${TASK_FLAGS[@]}" "${MODEL_FLAGS[@]}" "${CRITERION_FLAGS[@]}" "${TRAIN_FLAGS[@]}"
)

INT8="--format ctranslate2 --quantization int8"
BINARY=$DATA_DIR/binary
for system in merged-1 token_token-1 language_experts-1 dense-1 dense_wide-1; do
    record "$system" ""
    # A dense model has subnets as one whose experts are all used.
    case $system in
    merged-1) convert=() ;;
    dense*) convert=(--convert "moefy --experts 16") ;;
    *) continue ;;
    esac
    record "$system" trimmed --baseline "$system" "${convert[@]}" --extract=--trim-vocabulary
    record "$system" trimmed_int8 --baseline "$system" "${convert[@]}" --extract="--trim-vocabulary $INT8"
done
record merged-1 subnets --baseline merged-1 --extract
record merged-1 ctranslate2 --baseline merged-1 --extract="--format ctranslate2"
record merged-1 int8 --baseline merged-1 --extract="$INT8"
record language_experts-1 subnets --baseline language_experts-1 --extract
record language_experts-1 4_bits --baseline language_experts-1 --convert "quantize --bits 4 --half fp16"
for system in merged-1 token_token-1; do
    for bits in 8 4 3 2; do
        record "$system" "${bits}_bits" --baseline "$system" --convert "quantize --bits $bits --half fp16"
    done
done
# Trained for a thousand updates more, with two bits and without.
record merged_continued-1 "" --baseline merged-1
record merged_2bits-1 2_bits --baseline merged-1 --convert "quantize --bits 2 --half fp16"
for kept in 8_{importance,activity,utilization,random} 4_{importance,random}; do
    record token_token-1 "prune_$kept" --baseline token_token-1 --extract \
        --convert "prune --experts ${kept%_*} --metric ${kept#*_} --data $BINARY"
done
record token_token-1 prune_8_4_bits --baseline token_token-1 --extract=--half=fp16 \
    --convert "prune --experts 8 --data $BINARY" --convert "quantize --bits 4 --half fp16"
# Joined: two that went on from one start, and for comparison one that had as many updates as what is made of them.
if trained token_again-1 token_continued-{1,2}; then
    record token_again-1 ""
    for system in token_continued-1 token_continued-2 joined-1; do
        record "$system" "" --baseline token_again-1
    done
    record token_continued-1 joined --baseline token_again-1 \
        --convert "join $DATA_DIR/token_continued-2/model/$CHECKPOINT"
    record token_continued-1+token_continued-2 ensemble --baseline token_again-1
fi
for system in dense-1 dense_wide-1; do
    for keep in 12 8 4; do
        record "$system" "keep_$keep" --baseline "$system" --extract \
            --convert "moefy --experts 16 --keep $keep --data $BINARY"
    done
    record "$system" upcycled --baseline "$system" --convert "upcycle --moe-freq 1 --moe-expert-count 16 --moe-top-k 2"
    record "$system" 4_bits --baseline "$system" --convert "moefy --experts 16" --convert "quantize --bits 4 --half fp16"
done
# A dense model trained on, with experts and without.
record dense_continued-1 ""
record upcycled-1 "" --baseline dense_continued-1
record upcycled-1 subnets --baseline dense_continued-1 --extract
record merged-2 ""
record merged-1+merged-2 ensemble --baseline merged-1 --extract
