"""Whether tensors fit the arguments of their model, which is built without memory for it."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_REGISTRY
from torch import Tensor, nn

from taskmoe_plugin.errors import TaskMoEError


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


def check_fits(path: Path, args: Namespace, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that fairseq would not load.

    Args:
        path: where they are from.
        args: the arguments of their model.
        tensors: all of the model's, of which none is read.

    Raises:
        TaskMoEError: a tensor is missing, has another shape, or belongs to nothing.
    """
    source, target = (tensors[f"{stack}.embed_tokens.weight"].size(0) for stack in ("encoder", "decoder"))
    model = empty_model(args, (source, target))
    try:
        with warnings.catch_warnings():
            # That copying to the meta device does nothing.
            warnings.simplefilter("ignore", UserWarning)
            model.load_state_dict(dict(tensors))
    except RuntimeError as error:
        problems = shorten(str(error).partition(":")[2], 200, placeholder="…")
        raise TaskMoEError(
            f"{path}: its tensors do not fit its flags ({problems}); give a checkpoint that training wrote, with "
            "nothing added"
        ) from error
