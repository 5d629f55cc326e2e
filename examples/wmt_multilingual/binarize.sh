#!/usr/bin/env bash
# Usage: binarize.sh SETTINGS
#
# Turn the encoded text of every pair, $WORK_DIR/pieces, into fairseq's binary form, $WORK_DIR/binary.
# fairseq reads a pair's files for both directions. Shards keep their folders: binary/shard2, shard3, ...

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ ! -e $WORK_DIR/binary ]] || fail "$WORK_DIR/binary: exists already; delete it to make it again"
partial=$WORK_DIR/binary.partial
rm -rf "$partial"
mkdir -p "$partial"
trap 'rm -rf "$partial"' EXIT

log=$WORK_DIR/binary.log
dictionary=$WORK_DIR/vocabulary/dict.txt
pieces=$WORK_DIR/pieces
for folder in "$pieces" "$pieces"/shard*; do
    [[ -d $folder ]] || continue
    shard=${folder#"$pieces"}
    for pair in $(cd "$folder" && ls | cut -s -d. -f2 | sort -u); do
        echo "binarizing $pair $shard"
        prefixes=()
        for split in train valid test; do
            if [[ -f $folder/$split.$pair.${pair%-*} ]]; then
                prefixes+=("--${split}pref" "$folder/$split.$pair")
            fi
        done
        fairseq-preprocess --source-lang "${pair%-*}" --target-lang "${pair#*-}" "${prefixes[@]}" \
            --srcdict "$dictionary" --tgtdict "$dictionary" --destdir "$partial$shard" --workers "$WORKERS" \
            >"$log" 2>&1 || fail "$pair: $(tail -n 1 "$log") (more in $log)"
    done
done
mv "$partial" "$WORK_DIR/binary"
