# The comparison of systems on Multi30k (captions in English, German, French and Czech): six directions trained, the
# other six translated without having been trained. INPUT_DIR holds {train,valid,test}.{en,de,fr,cs}.

: "${DATA:=multi30k}"
: "${WORK_DIR:=$EXAMPLE/out/comparison/$DATA}"
: "${LANGS:=en,cs,de,fr}"
: "${LANG_PAIRS:=en-cs,cs-en,en-de,de-en,en-fr,fr-en}"
: "${ZERO_SHOT_PAIRS=cs-de,de-cs,cs-fr,fr-cs,de-fr,fr-de}"
: "${FAMILIES:=de,en cs fr}"
: "${VOCABULARY_SIZE:=4000}"
: "${MAX_UPDATE:=12000}"

TEXT_COMMAND=(
    "$EXAMPLE/get_files.py" --input-dir "${INPUT_DIR:?set it to the directory of the text}"
    --lang-pairs "$LANG_PAIRS${ZERO_SHOT_PAIRS:+,$ZERO_SHOT_PAIRS}"
)
source "$EXAMPLE/settings/systems.sh"
