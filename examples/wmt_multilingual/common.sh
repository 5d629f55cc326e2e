# Read by every step: shows its help, or loads the settings file that it was given.
set -euo pipefail

EXAMPLE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() {
    echo "$(basename "$0"): error: $1" >&2
    exit "${2:-1}"
}

# The comment at the top of a step is its help.
if [[ ${1-} == -h || ${1-} == --help ]]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit 0
fi
[[ $# -eq 1 ]] || fail "name one settings file, such as $EXAMPLE/settings/demo.sh (see --help)" 2
[[ -f $1 ]] || fail "$1: no such settings file" 2
command -v taskmoe >/dev/null || fail "taskmoe: not found; activate the environment where taskmoe_plugin is installed"

# What a settings file may leave out.
DOWNLOAD_COMMAND=() ENCODE_FLAGS=() TOKENIZE=13a GROUP_FLAGS=()
# How to train on the machine at hand, which may differ between runs.
LAUNCHER=() MACHINE_FLAGS=()
# shellcheck source=settings/demo.sh
source "$1"
# How many checkpoints to average, further test sets to score, COMET's command, and how many GPUs translate.
: "${AVERAGE:=1}" "${TEST_SETS:=}" "${COMET:=}" "${GPUS:=0}"
if ((AVERAGE > 1)); then
    CHECKPOINT=averaged.pt
    MACHINE_FLAGS+=(--keep-interval-updates "$AVERAGE")
fi
# Hundreds of lines about deprecations inside fairseq and hydra would hide what a step has to say.
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore}
