# Read by the steps that translate: runs a function for every direction, JOBS of them at a time, on all GPUS.

# translate_all OUT FUNCTION: for every direction that $OUT lacks, FUNCTION DIRECTION FILE writes the
# translation of the test text to FILE; what it prints goes to $OUT/DIRECTION.log.
translate_all() {
    local out=$1 function=$2 direction
    ((JOBS > 0)) || fail "JOBS=$JOBS: give at least 1" 2
    mkdir -p "$out"
    # One thread a job: models this small do not gain from more.
    export OMP_NUM_THREADS=1
    for direction in ${LANG_PAIRS//,/ }; do
        [[ ! -f $out/$direction.txt ]] || continue
        while (($(jobs -rp | wc -l) >= JOBS)); do
            wait -n || true
        done
        echo "translating $direction"
        translate_one "$out" "$function" "$direction" &
    done
    wait
    for direction in ${LANG_PAIRS//,/ }; do
        [[ -f $out/$direction.txt ]] || fail "$direction: $(tail -n 1 "$out/$direction.log") (more in $out/$direction.log)"
    done
    rm -f "$out"/gpu*.lock
    touch "$out/finished"
}

translate_one() {
    local out=$1 function=$2 direction=$3
    take_gpu "$out"
    "$function" "$direction" "$out/$direction.partial" >"$out/$direction.log" 2>&1 || return
    mv "$out/$direction.partial" "$out/$direction.txt"
}

# Take a GPU that no other job has, until this one ends. Jobs beyond the number of GPUs share the first.
take_gpu() {
    local out=$1 gpu devices
    IFS=, read -ra devices <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((GPUS - 1)))}"
    for ((gpu = 0; gpu < GPUS; gpu++)); do
        exec 9>"$out/gpu$gpu.lock"
        if flock -n 9; then
            export CUDA_VISIBLE_DEVICES=${devices[gpu]}
            return
        fi
    done
}

# fairseq_generate DIRECTION FILE FLAGS...: the test text in the order of its lines, from fairseq-generate.
fairseq_generate() {
    local direction=$1 file=$2
    shift 2
    fairseq-generate "$WORK_DIR/binary" --source-lang "${direction%-*}" --target-lang "${direction#*-}" \
        --bpe sentencepiece --sentencepiece-model "$WORK_DIR/vocabulary/spm.model" \
        "${GENERATE_FLAGS[@]}" "$@" | tee "$file.generated" || return
    # fairseq prints the translations in another order; D-N is the one of line N, counted from 0.
    grep '^D-' "$file.generated" | cut -c 3- | sort -n | cut -f 3 >"$file"
    rm "$file.generated"
}
