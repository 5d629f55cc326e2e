# The comparison of systems on Home Assistant's strings: English to and from nine languages. Made for
# comparison.sh; with SYSTEM set it is also a settings file of its own for every step.

: "${DATA:=homeassistant}"
: "${WORK_DIR:=$EXAMPLE/out/comparison/$DATA}"
: "${LANGS:=en,cs,de,es,et,hu,lt,pt,sk,tr}"
: "${LANG_PAIRS:=en-cs,cs-en,en-de,de-en,en-es,es-en,en-et,et-en,en-hu,hu-en,en-lt,lt-en,en-pt,pt-en,en-sk,sk-en,en-tr,tr-en}"
: "${ZERO_SHOT_PAIRS=}"
: "${VOCABULARY_SIZE:=8000}"
: "${EXPERTS:=16}"
: "${MAX_UPDATE:=4000}"

TEXT_COMMAND=(
    "$EXAMPLE/get_homeassistant.py" --lang-pairs "$LANG_PAIRS" --max-words 20 --held-out 500
    --download-dir "$WORK_DIR/download"
)
source "$EXAMPLE/settings/systems.sh"
