#!/usr/bin/env bash
# Usage: next_steps.sh SETTINGS
#
# Print commands to try when run.sh has finished: translate a sentence of one's own, see which languages use which
# experts, extract a direction that is not extracted yet. They work in the directory where this is called.

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

from_here() {
    realpath --no-symlinks --relative-base="$PWD" "$1"
}

# The first direction between two of the languages that was not trained, or else the first one that was.
another_pair() {
    local source target
    for source in ${LANGS//,/ }; do
        for target in ${LANGS//,/ }; do
            [[ $source == "$target" || ,$LANG_PAIRS, == *",$source-$target,"* ]] || { echo "$source-$target" && return; }
        done
    done
    echo "${LANG_PAIRS%%,*}"
}

taskmoe=$(from_here "$(command -v taskmoe)") work=$(from_here "$WORK_DIR") pair=${LANG_PAIRS%%,*}
cat <<END
== to try next
translate a sentence of your own:
    echo "Turn on the light in the kitchen" | $taskmoe translate $work/ctranslate2 --source ${pair%-*} --target ${pair#*-}
see which languages use which experts, also as pictures in $work/report:
    $taskmoe report $work/model/$CHECKPOINT --output-dir $work/report
extract another pair:
    $taskmoe extract $work/binary --path $work/model/$CHECKPOINT --lang-pairs $(another_pair) --output-dir $work/more \\
        --format ctranslate2 --sentencepiece-model $work/vocabulary/spm.model
END
