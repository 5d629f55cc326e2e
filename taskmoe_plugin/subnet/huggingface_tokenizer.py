"""A SentencePiece model as a ``tokenizer.json`` of Hugging Face's tokenizers, with the ids of a fairseq dictionary."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.subnet.sentencepiece_model import Piece, PieceModel, protocol
from taskmoe_plugin.subnet.vocabulary import Vocabulary

UNIGRAM = protocol.TrainerSpec.UNIGRAM
SPECIAL = 4  # fairseq's own symbols, the first of every dictionary
EOS, UNK = 2, 3
SPACE = "▁"


def check_supported(pieces: PieceModel) -> None:
    """Refuse a model that Hugging Face's tokenizers cannot be.

    Raises:
        TaskMoEError: it is not of type unigram, or puts the sign of a blank behind words.
    """
    if pieces.proto.trainer_spec.treat_whitespace_as_suffix:
        raise TaskMoEError(
            "--format huggingface: --sentencepiece-model was trained with --treat_whitespace_as_suffix, which "
            "tokenizers cannot do; use another --format"
        )
    if pieces.proto.trainer_spec.model_type != UNIGRAM:
        kind = protocol.TrainerSpec.ModelType.Name(pieces.proto.trainer_spec.model_type)
        raise TaskMoEError(
            f"--format huggingface: --sentencepiece-model is of type {kind.lower()}, only unigram can be written; "
            "use another --format"
        )


def tokenizer(vocabulary: Vocabulary, pieces: PieceModel, source_prefix: Sequence[str]) -> dict[str, Any]:
    """The content of ``tokenizer.json``.

    Args:
        vocabulary: the dictionary, whose order gives the ids.
        pieces: a model of type unigram.
        source_prefix: tokens to put before every text.
    """
    symbols = vocabulary.symbols
    prefix = [{"SpecialToken": {"id": token, "type_id": 0}} for token in source_prefix]
    text, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": symbols[EOS], "type_id": 0}}
    special = {token: {"id": token, "ids": [symbols.index(token)], "tokens": [token]}
               for token in (*source_prefix, symbols[EOS])}  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": _normalizer(pieces),
        "pre_tokenizer": _metaspace("never"),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*prefix, text, end],
            "pair": [*prefix, text, {"Sequence": {"id": "B", "type_id": 0}}, end],
            "special_tokens": special,
        },
        "decoder": _decoder(pieces),
        "model": {
            "type": "Unigram",
            "unk_id": UNK,
            "vocab": _scores(vocabulary, pieces),
            "byte_fallback": bool(pieces.proto.trainer_spec.byte_fallback),
        },
    }


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    special = {*vocabulary.symbols[:SPECIAL], *vocabulary.language_tokens}
    return [
        {"id": index, "content": symbol, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for index, symbol in enumerate(vocabulary.symbols) if symbol in special
    ]  # fmt: skip


def _scores(vocabulary: Vocabulary, pieces: PieceModel) -> list[list[Any]]:
    own = {piece.piece: piece.score for piece in pieces.proto.pieces if piece.type != Piece.UNUSED}
    # What SentencePiece does not know costs more than anything that it knows.
    worst = min(own.values(), default=0.0) - 10
    return [[symbol, own.get(symbol, worst)] for symbol in vocabulary.symbols]


def _normalizer(pieces: PieceModel) -> dict[str, Any] | None:
    spec = pieces.proto.normalizer_spec
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        # Blanks alone: other white space is a piece's, where the normalization leaves it.
        steps.append({"type": "Replace", "pattern": {"Regex": "^ +| +$"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if spec.add_dummy_prefix:
        # The pre-tokenizer puts none before text that begins with one.
        steps.append({"type": "Prepend", "prepend": SPACE})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}


def _decoder(pieces: PieceModel) -> dict[str, Any]:
    if not pieces.proto.trainer_spec.byte_fallback:
        return _metaspace("always" if pieces.proto.normalizer_spec.add_dummy_prefix else "never")
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if pieces.proto.normalizer_spec.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
