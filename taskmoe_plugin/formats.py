"""The formats that subnets are written in. Imports nothing, for command lines."""

from __future__ import annotations

FORMATS = ("fairseq", "ctranslate2", "huggingface", "argos")
# Those that hold a CTranslate2 model, and those that are of no use without the pieces of their text.
CTRANSLATE2 = ("ctranslate2", "argos")
WITH_PIECES = ("huggingface", "argos")
# How CTranslate2 stores weights.
QUANTIZATIONS = (
    "float32",
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
    "int16",
    "float16",
    "bfloat16",
)
# How fairseq and Hugging Face store weights, with PyTorch's names.
HALF = {"fp16": "float16", "bf16": "bfloat16"}
