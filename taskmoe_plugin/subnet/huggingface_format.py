"""Writing a subnet in the format of Hugging Face's transformers, without that library."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from fairseq.modules import SinusoidalPositionalEmbedding
from torch import Tensor

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.models.config import STACKS
from taskmoe_plugin.subnet.huggingface_tokenizer import tokenizer
from taskmoe_plugin.subnet.plan import Plan
from taskmoe_plugin.subnet.report import write_json
from taskmoe_plugin.subnet.sentencepiece_model import PieceModel
from taskmoe_plugin.subnet.vocabulary import Vocabulary

FILE = "model.safetensors"
# fairseq's names of activation functions, and those of transformers.
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "swish": "silu",
    "tanh": "tanh",
    "linear": "linear",
}
# fairseq's special symbols are the first of every dictionary.
BOS, PAD, EOS, UNK = range(4)
BEAM = 5


def check_supported(plan: Plan, args: Namespace, task: Namespace) -> None:
    """Refuse what neither of the two model classes computes exactly.

    Raises:
        TaskMoEError: the model has something that they lack, or safetensors is not installed.
    """
    if not find_spec("safetensors"):
        raise TaskMoEError("--format huggingface: needs a package that is not here; pip install safetensors")
    norms = {getattr(args, f"{stack}_normalize_before") for stack in STACKS}
    widths = {getattr(args, f"{stack}_embed_dim") for stack in STACKS}
    reasons = {
        "the low-rank matrices that a subnet of several pairs keeps": plan.keeps_matrices,
        "MoE layers, which this subnet keeps": not plan.dense,
        "one stack with --normalize-before and one without": len(norms) > 1,
        "embeddings that are not shared (it needs --share-all-embeddings)": not args.share_all_embeddings,
        "--layernorm-embedding": args.layernorm_embedding,
        "--no-decoder-final-norm": norms == {True} and getattr(args, "no_decoder_final_norm", False),
        "learned positions": any(getattr(args, f"{stack}_learned_pos") for stack in STACKS),
        "--no-token-positional-embeddings": args.no_token_positional_embeddings,
        f"--activation-fn {args.activation_fn}": args.activation_fn not in ACTIVATIONS,
        "--adaptive-softmax-cutoff": args.adaptive_softmax_cutoff is not None,
        "--no-cross-attention": args.no_cross_attention,
        "--cross-self-attention": args.cross_self_attention,
        "--lang-tok-replacing-bos-eos": task.lang_tok_replacing_bos_eos,
        "stacks or embeddings of different widths": len(widths | {args.decoder_input_dim, args.decoder_output_dim}) > 1,
    }
    for reason, found in reasons.items():
        if found:
            raise TaskMoEError(f"--format huggingface: transformers does not support {reason}; use --format fairseq")


def write_model(
    directory: Path,
    args: Namespace,
    weights: Mapping[str, Tensor],
    vocabulary: Vocabulary,
    pieces: PieceModel,
    prefixes: tuple[Sequence[str], Sequence[str]],
) -> None:
    """Write the files of a model: weights, configuration and tokenizer.

    A subnet whose layers normalise first is an ``M2M100ForConditionalGeneration``, another one a ``MarianMTModel``,
    which has post-norm layers, and gets fairseq's table of positions in place of its own.

    Args:
        directory: where to; it exists.
        args: arguments of the stock ``transformer`` with the weights.
        weights: the tensors of a stock ``transformer`` by name.
        vocabulary: the dictionary of both sides.
        pieces: the SentencePiece model of the text.
        prefixes: what source and target begin with, each at most one language token.
    """
    source, target = prefixes
    pre_norm = args.encoder_normalize_before
    tensors = _tensors(args, weights, table=not pre_norm)
    _save(tensors, directory / FILE)
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    write_json(directory / "config.json", _config(args, len(vocabulary.symbols), pre_norm, dtype))
    write_json(
        directory / "generation_config.json", _generation(args, [vocabulary.symbols.index(each) for each in target])
    )
    write_json(directory / "tokenizer.json", tokenizer(vocabulary, pieces, source))
    write_json(
        directory / "tokenizer_config.json",
        {
            # The one name that both transformers 4 and 5 know.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": vocabulary.symbols[BOS],
            "eos_token": vocabulary.symbols[EOS],
            "pad_token": vocabulary.symbols[PAD],
            "unk_token": vocabulary.symbols[UNK],
            "model_max_length": args.max_source_positions,
            "clean_up_tokenization_spaces": False,
            # The models know nothing of token types.
            "model_input_names": ["input_ids", "attention_mask"],
        },
    )


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # of a full disk, too
        raise OSError(str(error)) from error


def _tensors(args: Namespace, weights: Mapping[str, Tensor], table: bool) -> dict[str, Tensor]:
    shared = "encoder.embed_tokens.weight"
    found = {
        f"model.{name}": tensor.contiguous()
        for name, tensor in weights.items()
        if not name.endswith((".version", "embed_tokens.weight", "output_projection.weight", "_float_tensor"))
    }
    found["model.shared.weight"] = weights[shared].contiguous()
    if table:
        positions = _positions(args)
        width = weights[shared].size(1)
        # fairseq counts positions from the padding index on, Marian from 0.
        own = SinusoidalPositionalEmbedding.get_embedding(positions + PAD + 1, width, padding_idx=PAD)[PAD + 1 :]
        for stack in STACKS:
            found[f"model.{stack}.embed_positions.weight"] = own.to(weights[shared].dtype).clone()
        found["final_logits_bias"] = torch.zeros(1, weights[shared].size(0), dtype=weights[shared].dtype)
    return found


def _positions(args: Namespace) -> int:
    return max(args.max_source_positions, args.max_target_positions)  # type: ignore[no-any-return]


def _config(args: Namespace, symbols: int, pre_norm: bool, dtype: str) -> dict[str, Any]:
    name, kind = ("M2M100ForConditionalGeneration", "m2m_100") if pre_norm else ("MarianMTModel", "marian")
    sizes = {}
    for stack in STACKS:
        sizes[f"{stack}_layers"] = getattr(args, f"{stack}_layers")
        sizes[f"{stack}_attention_heads"] = getattr(args, f"{stack}_attention_heads")
        sizes[f"{stack}_ffn_dim"] = getattr(args, f"{stack}_ffn_embed_dim")
        sizes[f"{stack}_layerdrop"] = 0.0
    return {
        "architectures": [name],
        "model_type": kind,
        "dtype": dtype,
        "vocab_size": symbols,
        **({} if pre_norm else {"decoder_vocab_size": symbols, "share_encoder_decoder_embeddings": True}),
        "d_model": args.encoder_embed_dim,
        **sizes,
        "activation_function": ACTIVATIONS[args.activation_fn],
        "scale_embedding": not args.no_scale_embedding,
        "max_position_embeddings": _positions(args),
        "dropout": args.dropout,
        "attention_dropout": args.attention_dropout,
        "activation_dropout": args.activation_dropout,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "decoder_start_token_id": EOS,
        "forced_eos_token_id": None,
    }


def _generation(args: Namespace, first: list[int]) -> dict[str, Any]:
    return {
        "bos_token_id": BOS,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "decoder_start_token_id": EOS,
        **({"forced_bos_token_id": first[0]} if first else {}),
        # fairseq never writes padding, and stops a beam when it is full.
        "suppress_tokens": [PAD],
        "early_stopping": True,
        "num_beams": BEAM,
        "max_length": args.max_target_positions,
    }
