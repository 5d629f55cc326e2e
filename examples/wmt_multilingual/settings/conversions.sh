# The demo's text, training and model, and its peers of the same data, batches and updates, for conversions.sh: SYSTEM
# says which. All have 4+4 layers of width 128. A token passes a feed-forward network of 256 units in each, or two experts
# of half of that, but in dense_wide. All but dense, trained on or not, have as many feed-forward weights, 2,048 units in
# each layer, and joined-1 has twice as many.

: "${WORK_DIR:=$EXAMPLE/out/conversions}"
source "$EXAMPLE/settings/demo.sh"
: "${SYSTEM:=merged-1}"

MERGED_FLAGS=("${MODEL_FLAGS[@]}")
MODEL_FLAGS=(
    --arch taskmoe_transformer_tiny --share-all-embeddings --encoder-normalize-before --decoder-normalize-before
    --dropout 0.0
)
TOKEN_FLAGS=(
    --moe-freq 1 --encoder-moe-routing token --decoder-moe-routing token
    --moe-expert-count 16 --moe-expert-ffn-dim 128 --moe-top-k 2 --moe-route-scale 2
)
# go_on FILE FLAGS...: a thousand more updates of a trained model.
go_on() {
    TRAIN_FLAGS+=(
        --lr 0.001 --warmup-updates 100 --total-num-update 1000 --max-update 1000
        --finetune-from-model "${DATA_DIR-}/$1" "${@:2}"
    )
}
case $SYSTEM in
merged-1) MODEL_FLAGS=("${MERGED_FLAGS[@]}") ;;
merged-2) MODEL_FLAGS=("${MERGED_FLAGS[@]}") TRAIN_FLAGS+=(--seed 2) ;;
merged_continued-1) MODEL_FLAGS=("${MERGED_FLAGS[@]}") && go_on "merged-1/model/$CHECKPOINT" ;;
merged_2bits-1) MODEL_FLAGS=("${MERGED_FLAGS[@]}" --moe-expert-bits 2) && go_on "merged-1/model/$CHECKPOINT" ;;
token_token-1) MODEL_FLAGS+=("${TOKEN_FLAGS[@]}") ;;
token_continued-1) MODEL_FLAGS+=("${TOKEN_FLAGS[@]}") && go_on "token_token-1/model/$CHECKPOINT" --seed 11 ;;
token_continued-2) MODEL_FLAGS+=("${TOKEN_FLAGS[@]}") && go_on "token_token-1/model/$CHECKPOINT" --seed 12 ;;
token_again-1) MODEL_FLAGS+=("${TOKEN_FLAGS[@]}") && go_on "token_continued-1/model/$CHECKPOINT" --seed 13 ;;
# conversions.sh joins both token_continued.
joined-1) MODEL_FLAGS+=("${TOKEN_FLAGS[@]}" --moe-expert-count 32) && go_on joined.pt --seed 13 ;;
language_experts-1) MODEL_FLAGS+=("${TOKEN_FLAGS[@]}" --moe-language-experts 4) ;;
dense-1) MODEL_FLAGS+=(--moe-freq 0) ;;
dense_continued-1) MODEL_FLAGS+=(--moe-freq 0) && go_on "dense-1/model/$CHECKPOINT" --seed 11 ;;
# --finetune-from-model does what `taskmoe convert upcycle` does.
upcycled-1) MODEL_FLAGS=("${MERGED_FLAGS[@]}") && go_on "dense-1/model/$CHECKPOINT" --seed 11 ;;
dense_wide-1) MODEL_FLAGS+=(--moe-freq 0 --encoder-ffn-embed-dim 2048 --decoder-ffn-embed-dim 2048) ;;
*) fail "SYSTEM=$SYSTEM: no such system" 2 ;;
esac
