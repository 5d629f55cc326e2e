#!/usr/bin/env bash
# Usage: binarize.sh SETTINGS
#
# Turn the encoded text of every pair, $WORK_DIR/pieces, into fairseq's binary form, $WORK_DIR/binary.
# fairseq reads a pair's files for both directions.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ ! -e $WORK_DIR/binary ]] || fail "$WORK_DIR/binary: exists already; delete it to make it again"
partial=$WORK_DIR/binary.partial
rm -rf "$partial"
mkdir -p "$partial"
trap 'rm -rf "$partial"' EXIT

log=$WORK_DIR/binary.log
dictionary=$WORK_DIR/vocabulary/dict.txt
for pair in $(cd "$WORK_DIR/pieces" && ls | cut -d. -f2 | sort -u); do
    echo "binarizing $pair"
    prefixes=()
    for split in train valid test; do
        if [[ -f $WORK_DIR/pieces/$split.$pair.${pair%-*} ]]; then
            prefixes+=("--${split}pref" "$WORK_DIR/pieces/$split.$pair")
        fi
    done
    fairseq-preprocess --source-lang "${pair%-*}" --target-lang "${pair#*-}" "${prefixes[@]}" \
        --srcdict "$dictionary" --tgtdict "$dictionary" --destdir "$partial" --workers "$WORKERS" \
        >"$log" 2>&1 || fail "$pair: $(tail -n 1 "$log") (more in $log)"
done
mv "$partial" "$WORK_DIR/binary"
