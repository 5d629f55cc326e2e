# The comparison of systems on Home Assistant's strings: English to and from nine languages, 0.2 million tokens a
# direction. Made for comparison.sh; with SYSTEM set it is also a settings file of its own for every step.

: "${DATA:=homeassistant}"
: "${WORK_DIR:=$EXAMPLE/out/comparison/$DATA}"
: "${LANGS:=en,cs,de,es,et,hu,lt,pt,sk,tr}"
: "${LANG_PAIRS:=en-cs,cs-en,en-de,de-en,en-es,es-en,en-et,et-en,en-hu,hu-en,en-lt,lt-en,en-pt,pt-en,en-sk,sk-en,en-tr,tr-en}"
: "${ZERO_SHOT_PAIRS=}"
: "${FAMILIES:=de,en es,pt cs,sk et,hu}"
: "${VOCABULARY_SIZE:=4000}"
: "${MAX_UPDATE:=12000}"
: "${SYSTEMS:=dense token_token source_target merged merged_low_rank}"

TEXT_COMMAND=(
    "$EXAMPLE/get_homeassistant.py" --lang-pairs "$LANG_PAIRS" --max-words 20 --held-out 500
    --download-dir "$WORK_DIR/download"
)
source "$EXAMPLE/settings/systems.sh"
