"""What the rows of docs/systems.md are called, in their order, and what papers say of the same."""

from __future__ import annotations

# Name of a row, what it is called, what was published.
Names = dict[str, tuple[str, str]]

ELEPHANTS = "[Elephants](https://arxiv.org/abs/2211.10017)"
MOQE = "[MoQE](https://arxiv.org/abs/2310.02410)"
NLLB = "[NLLB pruning](https://arxiv.org/abs/2212.09811)"
MOEFICATION = "[MoEfication](https://arxiv.org/abs/2110.01786)"
TASKMOE = "[TaskMoE](https://arxiv.org/abs/2110.03742)"

MERGED: Names = {
    "merged-1": ("the whole model", ""),
    "merged-1.subnets": ("subnets, in stock fairseq", f"{TASKMOE}: of 533M parameters 155M, the same translations"),
    "merged-1.trimmed": ("the same with trimmed vocabularies", ""),
    "merged-1.ctranslate2": ("subnets in CTranslate2, float32", ""),
    "merged-1.int8": ("subnets in CTranslate2, int8", ""),
    "merged-1.trimmed_int8": ("the same with trimmed vocabularies", ""),
    "merged-1.8_bits": ("whole, experts in 8 bits", f"{ELEPHANTS}: -0.007 BLEU, mean of ten pairs, experts > 90 %"),
    "merged-1.4_bits": ("whole, experts in 4 bits", f"{ELEPHANTS}: -0.167"),
    "merged-1.3_bits": ("whole, experts in 3 bits", ""),
    "merged-1.2_bits": ("whole, experts in 2 bits", ""),
    "merged_2bits-1.2_bits": (
        "the same, trained for 1,000 updates more with `--moe-expert-bits 2`",
        f"{MOQE}: 1.88 % more BLEU than dense",
    ),
    "merged_continued-1": ("trained for these updates without it", ""),
    "merged-2": ("the whole model of another seed", ""),
}
TOKEN: Names = {
    "token_token-1": ("the whole model", ""),
    "token_token-1.8_bits": ("whole, experts in 8 bits", f"{ELEPHANTS}: -0.007 BLEU"),
    "token_token-1.4_bits": ("whole, experts in 4 bits", f"{ELEPHANTS}: -0.167"),
    "token_token-1.3_bits": ("whole, experts in 3 bits", ""),
    "token_token-1.2_bits": ("whole, experts in 2 bits", ""),
    "token_token-1.prune_8_importance": ("subnets, 8 of 16 experts by importance", ""),
    "token_token-1.prune_8_activity": ("subnets, 8 of 16 experts by activity", ""),
    "token_token-1.prune_8_utilization": ("subnets, 8 of 16 experts by utilization", ""),
    "token_token-1.prune_8_random": ("subnets, 8 of 16 experts at random", ""),
    "token_token-1.prune_8_4_bits": ("subnets, 8 by importance, experts of 4 bits, all in fp16", ""),
    "token_token-1.prune_4_importance": (
        "subnets, 4 of 16 experts by importance",
        f"{NLLB}, 20 % of the experts: into English -5.9 spBLEU, length 1.16; from English +0.2",
    ),
    "token_token-1.prune_4_random": ("subnets, 4 of 16 experts at random", ""),
}
JOINED: Names = {
    "token_again-1": ("one of them trained for 1,000 updates more", ""),
    "token_continued-1": ("one of them", ""),
    "token_continued-2": ("the other", ""),
    "token_continued-1+token_continued-2.ensemble": ("both as an ensemble", ""),
    "token_continued-1.joined": ("joined (`join`)", ""),
    "joined-1": ("joined and trained for 1,000 updates more", ""),
}
LANGUAGE: Names = {
    "language_experts-1": ("the whole model", ""),
    "language_experts-1.subnets": ("subnets, which have the four experts of their language", ""),
    "language_experts-1.4_bits": ("whole, experts in 4 bits", f"{ELEPHANTS}: -0.167"),
}
DENSE: Names = {
    "dense-1": ("dense", ""),
    "dense-1.trimmed": ("with trimmed vocabularies", ""),
    "dense-1.trimmed_int8": ("the same in CTranslate2, int8", ""),
    "dense-1.upcycled": ("made a mixture of 16 experts (`upcycle`)", ""),
    "dense-1.4_bits": ("feed-forward networks in 4 bits (`moefy`, `quantize`)", ""),
    "dense-1.keep_12": ("three quarters of the hidden units (`moefy`)", ""),
    "dense-1.keep_8": ("half of them", ""),
    "dense-1.keep_4": (
        "a quarter of them",
        f"{MOEFICATION}: 10 to 30 % of the units keep 95 % of the score, chosen anew for each token",
    ),
}
UPCYCLED: Names = {
    "dense_continued-1": ("dense", ""),
    "upcycled-1": ("made merged experts (`upcycle`), then trained: the whole model", ""),
    "upcycled-1.subnets": ("the same, subnets", ""),
}
WIDE: Names = {
    "dense_wide-1": ("dense, eight times as wide", ""),
    "dense_wide-1.trimmed": ("with trimmed vocabularies", ""),
    "dense_wide-1.trimmed_int8": ("the same in CTranslate2, int8", ""),
    "dense_wide-1.upcycled": ("made a mixture of 16 experts (`upcycle`)", ""),
    "dense_wide-1.4_bits": ("feed-forward networks in 4 bits (`moefy`, `quantize`)", ""),
    "dense_wide-1.keep_12": ("three quarters of the hidden units (`moefy`)", ""),
    "dense_wide-1.keep_8": ("half of them", ""),
    "dense_wide-1.keep_4": ("a quarter of them", ""),
}
ENSEMBLES: Names = {
    "merged-1+merged-2.ensemble": ("subnets of two seeds: `--path a.pt:b.pt`", ""),
}
# Title → what is said, and the rows.
ROWS: dict[str, tuple[str, Names]] = {
    "Merged experts": (
        "The demo's model: 8 experts in each layer, which each language merges to one network of 256 units.",
        MERGED,
    ),
    "Experts by token": (
        "As many weights, in 16 experts of 128 units, of which a token uses two (`--moe-route-scale 2`). The ones to "
        "keep are chosen on the validation set, for each language.",
        TOKEN,
    ),
    "Experts by token, joined": (
        "Two that went on from the whole model above for 1,000 updates each, with different seeds; joined they have 32 "
        "experts, of which a token uses two. Tested against one of them that went on as the joined model did.",
        JOINED,
    ),
    "Experts by token, of their language": (
        "The same experts; a token chooses two of the four that its language has (`--moe-language-experts 4`).",
        LANGUAGE,
    ),
    "Dense": ("Networks of 256 units: what a token passes in the models above.", DENSE),
    "Dense, trained on with experts": (
        "The dense model above trained for 1,000 updates more: as it is, and made one of 8 merged experts in each "
        "layer, copies of its networks at first. Subnets have the dense model's size.",
        UPCYCLED,
    ),
    "Dense, with all the weights": ("Networks of 2,048 units, all of which every token passes.", WIDE),
    "Ensembles": (
        "Of subnets, in stock fairseq. The experts of a language are merged to one network: several subnets of one "
        "model would be the same. Tested against the merged model above.",
        ENSEMBLES,
    ),
}
SYSTEMS = {
    "merged-1": "merged experts",
    "token_token-1": "experts by token",
    "language_experts-1": "experts by token, of their language",
    "dense-1": "dense",
    "dense_wide-1": "dense, with all the weights",
}
DENSES = ("dense-1", "dense_wide-1")
# Title → the row of each system that there is.
COLUMNS: dict[str, dict[str, str]] = {
    "as trained": {system: system for system in SYSTEMS},
    "extracted": {system: f"{system}.subnets" for system in ("merged-1", "language_experts-1")},
    "trimmed": {system: f"{system}.trimmed" for system in ("merged-1", *DENSES)},
    "trimmed, int8": {system: f"{system}.trimmed_int8" for system in ("merged-1", *DENSES)},
    "all directions, 4 bits": {system: f"{system}.4_bits" for system in SYSTEMS},
    "pruned to 3/4": {system: f"{system}.keep_12" for system in DENSES},
    "to 1/2": {"token_token-1": "token_token-1.prune_8_importance"} | {each: f"{each}.keep_8" for each in DENSES},
    "to 1/4": {"token_token-1": "token_token-1.prune_4_importance"} | {each: f"{each}.keep_4" for each in DENSES},
}
