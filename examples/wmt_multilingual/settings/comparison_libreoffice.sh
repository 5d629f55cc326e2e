# The comparison of systems on LibreOffice's help: English to and from ten languages, 0.8 million tokens a direction. Made
# for comparison.sh; with SYSTEM set it is also a settings file of its own for every step.

: "${DATA:=libreoffice}"
: "${WORK_DIR:=$EXAMPLE/out/comparison/$DATA}"
: "${LANGS:=en,cs,da,de,el,fr,it,nl,pl,pt,sl}"
: "${LANG_PAIRS:=en-cs,cs-en,en-da,da-en,en-de,de-en,en-el,el-en,en-fr,fr-en,en-it,it-en,en-nl,nl-en,en-pl,pl-en,en-pt,pt-en,en-sl,sl-en}"
: "${ZERO_SHOT_PAIRS=de-fr}"
: "${FAMILIES:=da,de,en,nl fr,it,pt cs,pl,sl}"
: "${VOCABULARY_SIZE:=4000}"
: "${MAX_UPDATE:=12000}" # 20 million target tokens

TEXT_COMMAND=(
    "$EXAMPLE/get_libreoffice_help.py" --lang-pairs "$LANG_PAIRS${ZERO_SHOT_PAIRS:+,$ZERO_SHOT_PAIRS}"
    --download-dir "$WORK_DIR/download" ${DEB_DIR:+--deb-dir "$DEB_DIR"}
)
source "$EXAMPLE/settings/systems.sh"
