"""Small models and batches that need no data."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from torch import Tensor

import taskmoe_plugin  # noqa: F401  registers the architectures

LANGS = ("en", "de", "fr")
PAIRS = ("en-de", "de-en", "en-fr", "fr-en", "de-fr")
TASK_LEVEL = ("source", "target", "pair", "group")
ROUTINGS = (*TASK_LEVEL, "sentence", "token")
# Every routing in each stack once, and the paper's combinations.
COMBINATIONS = (
    ("source", "target"), ("target", "source"), ("pair", "pair"), ("group", "token"), ("sentence", "sentence"),
    ("token", "token"), ("token", "target"), ("target", "group"), ("pair", "sentence"),
)  # fmt: skip
# Flags of models that differ in how they route, and in what they make of a task's experts.
ROUTED = (
    *({"encoder_moe_routing": encoder, "decoder_moe_routing": decoder} for encoder, decoder in COMBINATIONS),
    {"moe_combine": "weights"},
    {"moe_language_experts": 3, "encoder_moe_routing": "token", "decoder_moe_routing": "token"},
    {"moe_dense_training": True, "encoder_moe_routing": "target", "decoder_moe_routing": "token"},
    {"moe_combine": "weights", "moe_top_k": 2, "encoder_moe_routing": "pair", "decoder_moe_routing": "group"},
)
GROUPS = {"en-de": "germanic", "de-en": "germanic", "en-fr": "mixed", "fr-en": "mixed", "de-fr": "mixed"}
SMALL = {
    f"{stack}_{name}": value
    for stack in ("encoder", "decoder")
    for name, value in {"layers": 2, "embed_dim": 16, "ffn_embed_dim": 24, "attention_heads": 2}.items()
}


def dictionary(words: int = 20) -> Dictionary:
    """A dictionary of words w0, w1, …"""
    symbols = Dictionary()
    for word in range(words):
        symbols.add_symbol(f"w{word}")
    return symbols


def name_of(flags: dict[str, Any]) -> str:
    """What to call a test of a model with these flags."""
    return "/".join(str(value) for value in flags.values())


class StubTask:
    """What building a model asks of its task."""

    def __init__(self, langs: Sequence[str] = LANGS, pairs: Sequence[str] = PAIRS, words: int = 20) -> None:
        self.langs, self.routed_pairs = list(langs), list(pairs)
        self.source_dictionary = self.target_dictionary = dictionary(words)


def model_args(arch: str = "taskmoe_transformer", **flags: Any) -> Namespace:
    """The arguments of a model: small, unless the architecture or the flags have it otherwise."""
    sizes = SMALL if arch in ("taskmoe_transformer", "transformer") else {}
    args = Namespace(arch=arch, **{"dropout": 0.0, **sizes, **flags})
    ARCH_CONFIG_REGISTRY[arch](args)
    return args


def build_model(arch: str = "taskmoe_transformer", seed: int = 0, task: Any = None, **flags: Any) -> Any:
    """A model in evaluation mode: small, unless the architecture or the flags have it otherwise.

    Args:
        arch: a registered architecture; its own sizes hold if it is not ``taskmoe_transformer`` or ``transformer``.
        seed: of the initial weights. Biases are random, so that none of them goes unnoticed.
        task: in place of a StubTask.
        flags: flags of the model, as attributes.
    """
    return build_model_of(model_args(arch, **flags), seed, task)


def build_model_of(args: Namespace, seed: int = 0, task: Any = None) -> Any:
    """As ``build_model``, of the arguments that ``model_args`` has made."""
    torch.manual_seed(seed)
    model = ARCH_MODEL_REGISTRY[args.arch].build_model(args, task or StubTask())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.5, 0.5)
    return model.eval()


def build_grouped(tmp_path: Any, **flags: Any) -> Any:
    """``build_model`` with a group file, for flags that may ask for group routing."""
    path = tmp_path / "groups.tsv"
    path.write_text("".join(f"{pair}\t{group}\n" for pair, group in GROUPS.items()))
    return build_model(moe_task_groups=str(path), **flags)


@dataclass(frozen=True)
class Row:
    """A sentence pair as token ids, without end-of-sentence."""

    pair: str
    source: tuple[int, ...]
    target: tuple[int, ...]


def rows(count: int = 7, seed: int = 0, pairs: Sequence[str] = PAIRS, longest: int = 6) -> list[Row]:
    """Random sentence pairs of different lengths; the pairs take turns."""
    generator = torch.Generator().manual_seed(seed)

    def words() -> tuple[int, ...]:
        length = int(torch.randint(1, longest + 1, (1,), generator=generator))
        return tuple(torch.randint(4, 24, (length,), generator=generator).tolist())

    return [Row(pairs[index % len(pairs)], words(), words()) for index in range(count)]


def padded(sequences: Sequence[Sequence[int]], pad: int, left: bool, extra: int = 0) -> Tensor:
    """(B, T) int64 of sequences of different lengths."""
    width = max(map(len, sequences)) + extra
    filled = [
        [pad] * (width - len(each)) + list(each) if left else [*each] + [pad] * (width - len(each))
        for each in sequences
    ]
    return torch.tensor(filled)


def net_input(
    batch: Sequence[Row], left: bool = True, extra: int = 0, langs: Sequence[str] = LANGS
) -> dict[str, Tensor]:
    """What a model is called with, for rows of any pairs.

    Args:
        batch: the rows.
        left: pad sources on the left, as fairseq does by default, and targets too.
        extra: columns of padding beyond what is needed.
        langs: the languages, in the order of their ids.
    """
    symbols = dictionary()
    pad, eos = symbols.pad(), symbols.eos()
    ids = {lang: index for index, lang in enumerate(langs, 1)}
    source, target = zip(*((ids[lang] for lang in row.pair.split("-")) for row in batch))
    return {
        "src_tokens": padded([(*row.source, eos) for row in batch], pad, left, extra),
        "src_lengths": torch.tensor([len(row.source) + 1 for row in batch]),
        "prev_output_tokens": padded([(eos, *row.target) for row in batch], pad, left, extra),
        "src_lang_id": torch.tensor(source),
        "tgt_lang_id": torch.tensor(target),
    }


def kept(logits: Tensor, batch: dict[str, Tensor]) -> list[Tensor]:
    """Each row's logits (T, V) at the positions that are not padding."""
    mask = batch["prev_output_tokens"].ne(dictionary().pad())
    return [row[positions] for row, positions in zip(logits, mask)]
