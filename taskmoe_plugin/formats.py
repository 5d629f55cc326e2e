"""The formats that subnets are written in, and their names. Imports little, for command lines."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

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
DESCRIPTION = "subnet.json"  # of a subnet, in its directory
# What a file may be called is at most 255 bytes, some of which the name of a subnet that is being written needs.
LONGEST_NAME = 200


def subnet_name(pairs: Sequence[str]) -> str:
    """The name of the directory of a subnet: its pairs; of too many the first, how many more, and a hash of all."""
    name = "+".join(pairs)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{pairs[0]}+{len(pairs) - 1}-more-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
