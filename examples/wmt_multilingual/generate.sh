# Read by the steps that translate: runs a function for every direction, JOBS of them at a time.

# translate_all OUT FUNCTION: for every direction that $OUT lacks, FUNCTION DIRECTION FILE writes the
# translation of the test text to FILE; what it prints goes to $OUT/DIRECTION.log.
translate_all() {
    local out=$1 function=$2 direction
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
    touch "$out/finished"
}

translate_one() {
    local out=$1 function=$2 direction=$3
    "$function" "$direction" "$out/$direction.partial" >"$out/$direction.log" 2>&1 || return
    mv "$out/$direction.partial" "$out/$direction.txt"
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
