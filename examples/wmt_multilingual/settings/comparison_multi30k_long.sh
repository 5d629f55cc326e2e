# The systems of the comparison on Multi30k that matter most, trained four times as long. INPUT_DIR is that of
# comparison_multi30k.sh.

: "${DATA:=multi30k_long}"
: "${MAX_UPDATE:=16000}"
: "${SYSTEMS:=dense source_target static token_target token_token}"
# PyTorch then asks for huge pages, which leaves the kernel a quarter of the work.
export THP_MEM_ALLOC_ENABLE=${THP_MEM_ALLOC_ENABLE:-1}
source "$EXAMPLE/settings/comparison_multi30k.sh"
# Each sentence is seen about six times, and not once or twice.
MODEL_FLAGS+=(--dropout 0.1)
