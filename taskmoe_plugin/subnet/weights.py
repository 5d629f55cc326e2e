"""The tensors of a subnet: what each is made of, so that it can be read when it is needed, and not before."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from taskmoe_plugin.subnet.checkpoint import MappedTensors
from taskmoe_plugin.subnet.fold import PARTS, fold, pad, part_shapes
from taskmoe_plugin.subnet.plan import Fate, Plan, StackPlan

_OF_LAYERS = re.compile(r"(encoder|decoder)\.(layers\.\d+\.(moe|fc1|fc2)|tasks)\.")

# Reads a tensor of the full model.
Read = Callable[[str], Tensor]


@dataclass(frozen=True, eq=False)
class Recipe:
    """How to make a tensor of the subnet.

    Attributes:
        shape: the tensor's shape, which is known before anything is read.
        make: makes it out of what it reads.
    """

    shape: torch.Size
    make: Callable[[Read], Tensor]


def recipes(
    tensors: MappedTensors,
    plan: Plan,
    rows: Mapping[str, Tensor],
    widths: Mapping[str, int],
    dtype: torch.dtype | None,
) -> dict[str, Recipe]:
    """How to make each tensor of a subnet, by its name; tensors that share weights have the same recipe.

    Args:
        tensors: the full model.
        plan: what becomes of it.
        rows: for tensors of which only some rows are kept, their indices (int64).
        widths: the hidden width that feed-forward networks outside MoE layers are padded to, for stacks that need it.
        dtype: what floating-point weights are stored as; None: as they are, folded ones in fp32.
    """
    found = dict(_recipes(tensors, plan, rows, widths))
    if dtype is not None:
        # A gate computes in fp32 whatever the model does.
        found = {
            name: recipe if ".router." in name else replace(recipe, make=partial(_rounded, recipe.make, dtype))
            for name, recipe in found.items()
        }
    tied = {name: found[original] for name, original in tensors.tied.items() if name in tensors.names()}
    return {**found, **tied}


def read_weights(making: Mapping[str, Recipe], read: Read) -> dict[str, Tensor]:
    """All tensors of a subnet by name; those that share weights are the same object."""
    made = {recipe: recipe.make(read) for recipe in dict.fromkeys(making.values())}
    return {name: made[recipe] for name, recipe in making.items()}


def reader(tensors: MappedTensors, rows: Mapping[str, Tensor], advance: Callable[[int], object]) -> Read:
    """Reads copies of tensors from the disk.

    Args:
        tensors: the full model.
        rows: for tensors of which only some rows are kept, their indices (int64).
        advance: told of the number of bytes that have been read.
    """

    def read(name: str) -> Tensor:
        tensor = tensors.tensor(name, rows.get(name))
        advance(tensor.nbytes)
        return tensor

    return read


def kept_bytes(tensors: MappedTensors, plan: Plan, rows: Mapping[str, Tensor]) -> int:
    """Bytes that are read for a subnet, those of the gates aside."""
    names = _shared_names(tensors)
    for stack in plan.stacks.values():
        for layer in range(stack.layers):
            names += [prefix + part for prefix in _networks(stack, layer) for part in PARTS]
    return sum(tensors.mapped(name)[: len(rows[name]) if name in rows else None].nbytes for name in names)


def ffn_dims(tensors: MappedTensors, stack: StackPlan) -> list[int]:
    """Hidden width, in the subnet, of the feed-forward network of each layer; in an MoE layer, that of an expert."""
    dims = []
    for layer in range(stack.layers):
        own = [tensors.mapped(prefix + "fc1.bias").numel() for prefix in _networks(stack, layer)]
        dims.append(sum(own) if stack.fate is Fate.FOLDED else own[0])
    return dims


def _shared_names(tensors: MappedTensors) -> list[str]:
    return [name for name in tensors.names() if name not in tensors.tied and not _OF_LAYERS.match(name)]


def _networks(stack: StackPlan, layer: int) -> list[str]:
    """Prefixes of the feed-forward networks that a layer keeps."""
    prefix = f"{stack.config.stack}.layers.{layer}."
    if layer not in stack.moe_layers:
        return [prefix]
    return [f"{prefix}moe.experts.{index}." for index in stack.kept_experts(layer)]


def _recipes(
    tensors: MappedTensors, plan: Plan, rows: Mapping[str, Tensor], widths: Mapping[str, int]
) -> Iterator[tuple[str, Recipe]]:
    for name in _shared_names(tensors):
        shape = tensors.mapped(name).shape
        kept = torch.Size((len(rows[name]), *shape[1:])) if name in rows else shape
        yield name, Recipe(kept, _reading(name))
    for name, stack in plan.stacks.items():
        dims = ffn_dims(tensors, stack)
        for layer in range(stack.layers):
            if layer in stack.moe_layers and stack.fate is not Fate.FOLDED:
                yield from _moe_layer(tensors, stack, layer)
                continue
            inputs = tensors.mapped(_networks(stack, layer)[0] + "fc2.bias").numel()
            shapes = part_shapes(inputs, widths.get(name, dims[layer]))
            for part in PARTS:
                make = partial(_dense_part, stack, layer, part, widths.get(name))
                yield f"{name}.layers.{layer}.{part}", Recipe(shapes[part], make)
        if stack.fate is Fate.ROUTED:
            yield f"{name}.tasks.share", _constant(_kept_share(tensors, stack))


def _reading(name: str) -> Callable[[Read], Tensor]:
    return lambda read: read(name)


def _constant(tensor: Tensor) -> Recipe:
    return Recipe(tensor.shape, lambda read: tensor)


def _rounded(make: Callable[[Read], Tensor], dtype: torch.dtype, read: Read) -> Tensor:
    tensor = make(read)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _dense_part(stack: StackPlan, layer: int, part: str, width: int | None, read: Read) -> Tensor:
    """A part of a layer's only feed-forward network, folded where the full model has experts."""
    if layer in stack.moe_layers:
        experts, weights = (table[0].tolist() for table in stack.gates[layer])
        prefix = f"{stack.config.stack}.layers.{layer}.moe.experts."
        tensor = fold(part, [read(f"{prefix}{expert}.{part}") for expert in experts], weights)
    else:
        tensor = read(f"{stack.config.stack}.layers.{layer}.{part}")
    return tensor if width is None else pad(part, tensor, width)


def _moe_layer(tensors: MappedTensors, stack: StackPlan, layer: int) -> Iterator[tuple[str, Recipe]]:
    for prefix in _networks(stack, layer):
        names = [prefix + part for part in PARTS]
        yield from ((name, Recipe(tensors.mapped(name).shape, _reading(name))) for name in names)
    router = f"{stack.config.stack}.layers.{layer}.moe.router."
    if stack.fate is Fate.WHOLE:
        yield from ((name, _constant(tensors.tensor(name))) for name in tensors.names() if name.startswith(router))
    else:
        tables = zip(("experts", "weights"), stack.gates[layer])
        yield from ((router + name, _constant(table)) for name, table in tables)


def _kept_share(tensors: MappedTensors, stack: StackPlan) -> Tensor:
    assert stack.config.table is not None
    share = tensors.tensor(f"{stack.config.stack}.tasks.share")
    return share[[stack.config.table.names.index(task) for task in stack.tasks]]
