"""Whether tensors fit the arguments of their model, which is built without memory for it."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_REGISTRY
from torch import Tensor, nn

from taskmoe_plugin.models.packed_experts import KEY, PackedParameters
from taskmoe_plugin.subnet.fitting import load_weights


@dataclass
class _Languages:
    """What a model asks of its task when it is built."""

    langs: list[str]
    routed_pairs: list[str]
    source_dictionary: Dictionary
    target_dictionary: Dictionary


def empty_model(args: Namespace, symbols: tuple[int, int]) -> nn.Module:
    """The model of a checkpoint's arguments on the meta device: names and shapes, and no memory.

    Args:
        args: the model's arguments.
        symbols: the sizes of the two dictionaries.
    """
    langs, pairs = (getattr(args, f"taskmoe_{name}", "").split(",") for name in ("langs", "lang_pairs"))
    task = _Languages(langs, pairs, *map(_dictionary, symbols))
    with torch.device("meta"):
        return ARCH_MODEL_REGISTRY[args.arch].build_model(Namespace(**vars(args)), task)  # type: ignore[no-any-return]


def _dictionary(size: int) -> Dictionary:
    symbols = Dictionary()
    for index in range(len(symbols), size):
        symbols.add_symbol(str(index))
    return symbols


def dictionary_sizes(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """The sizes of the two dictionaries of a model's tensors."""
    source, target = (tensors[f"{stack}.embed_tokens.weight"].size(0) for stack in ("encoder", "decoder"))
    return source, target


def _unpacked(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors, and in the place of quantised ones others of their shape that take no memory."""
    packed = PackedParameters(tensors.get(KEY, {}))
    shapes = {name: torch.empty(packed.shape(name), device="meta") for name in packed}
    return {**{name: each for name, each in tensors.items() if name != KEY}, **shapes}


def check_fits(path: Path, args: Namespace, tensors: Mapping[str, Any]) -> None:
    """Refuse tensors that fairseq would not load.

    Args:
        path: where they are from.
        args: the arguments of their model.
        tensors: all of the model's, as its checkpoint has them; none is read.

    Raises:
        TaskMoEError: a tensor is missing, has another shape, or belongs to nothing.
    """
    model = empty_model(args, dictionary_sizes(tensors))
    with warnings.catch_warnings():
        # That copying to the meta device does nothing.
        warnings.simplefilter("ignore", UserWarning)
        load_weights(model, _unpacked(tensors), str(path))
