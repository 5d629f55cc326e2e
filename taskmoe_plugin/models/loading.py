"""Giving a model its weights, and whether weights are those of a model's arguments."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from taskmoe_plugin.errors import TaskMoEError, UsageError

MODEL = "taskmoe_transformer"


def model_name(args: Any) -> str:
    """What the model of some arguments is registered as, that of a named architecture; empty if they do not say.

    Args:
        args: a Namespace, or, as a subnet for stock fairseq has them, a dictionary.
    """
    own = args if isinstance(args, Mapping) else vars(args) if isinstance(args, Namespace) else {}
    arch = own.get("arch") or own.get("_name") or ""
    return ARCH_MODEL_NAME_REGISTRY.get(arch, arch)  # type: ignore[no-any-return]


@contextmanager
def reading_flags(name: str) -> Iterator[None]:
    """Within the context, what the flags in a checkpoint make fail is an error of that checkpoint.

    Args:
        name: what to call it.

    Raises:
        TaskMoEError: its flags are damaged.
    """
    try:
        yield
    except (UsageError, LookupError, AttributeError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        problem = shorten(str(error) or type(error).__name__, 200, placeholder="…")
        raise TaskMoEError(f"{name}: its flags are damaged ({problem}); copy it again") from error


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Load weights that must be all of a module's, and no others.

    Args:
        module: the module.
        weights: its weights by name.
        name: what to call the checkpoint that they are from.

    Raises:
        TaskMoEError: one is missing, has another shape, or belongs to nothing.
    """
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        problems = shorten(str(error).partition(":")[2], 200, placeholder="…")
        raise TaskMoEError(
            f"{name}: its tensors do not fit its flags ({problems}); give a checkpoint that training wrote, with "
            "nothing added"
        ) from error


@dataclass
class _Languages:
    """What a model asks of its task when it is built."""

    langs: list[str]
    routed_pairs: list[str]
    source_dictionary: Dictionary
    target_dictionary: Dictionary


class _Unfilled(TorchFunctionMode):
    """Makes empty tensors on the meta device, and leaves them unfilled.

    ``torch.device("meta")`` would do for all others as well, but there PyTorch imports its compiler, for seconds, to
    fill a tensor or count a range.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        elif func.__name__ in ("normal_", "uniform_"):
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def meta_model(args: Namespace, symbols: tuple[int, int]) -> nn.Module:
    """The model of a checkpoint's arguments, its weights on the meta device: names and shapes, and no memory.

    Args:
        args: the model's arguments.
        symbols: the sizes of the two dictionaries.
    """
    langs, pairs = (getattr(args, f"taskmoe_{name}", "").split(",") for name in ("langs", "lang_pairs"))
    task = _Languages(langs, pairs, *map(_dictionary, symbols))
    # Files of pretrained embeddings are for the start of a training.
    args = Namespace(**{**vars(args), "encoder_embed_path": None, "decoder_embed_path": None})
    with _Unfilled():
        return ARCH_MODEL_REGISTRY[args.arch].build_model(args, task)  # type: ignore[no-any-return]


def _dictionary(size: int) -> Dictionary:
    symbols = Dictionary()
    for index in range(len(symbols), size):
        symbols.add_symbol(str(index))
    return symbols


def dictionary_sizes(weights: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """The sizes of the two dictionaries of a model's weights.

    Args:
        weights: those of a Transformer, by name.
        name: what to call the checkpoint that they are from.

    Raises:
        TaskMoEError: there are no embeddings.
    """
    embeddings = [f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")]
    for each in embeddings:
        if each not in weights:
            raise TaskMoEError(f"{name}: the tensor {each} is missing; give a checkpoint that training wrote")
    source, target = (weights[each].size(0) for each in embeddings)
    return source, target


def check_weights(args: Namespace, weights: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights that fairseq would not load.

    Args:
        args: the arguments of their model.
        weights: all of the model's by name, of which only the shapes are looked at.
        name: what to call the checkpoint that they are from.

    Raises:
        TaskMoEError: one is missing, has another shape, or belongs to nothing, or the arguments are damaged.
    """
    sizes = dictionary_sizes(weights, name)
    with reading_flags(name):
        model = meta_model(args, sizes)
    with warnings.catch_warnings():
        # That copying to the meta device does nothing.
        warnings.simplefilter("ignore", UserWarning)
        load_weights(model, weights, name)
