"""The tensors of a subnet: what each is made of, so that it can be read when it is needed, and not before."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.models.low_rank import TENSORS
from taskmoe_plugin.moe.fold import PARTS, fold, pad, part_shapes
from taskmoe_plugin.moe.low_rank import fold_low_rank
from taskmoe_plugin.subnet.checkpoint import MappedTensors
from taskmoe_plugin.subnet.plan import Plan, StackForm, StackPlan

_OF_LAYERS = re.compile(r"(encoder|decoder)\.(layers\.\d+\.(moe|fc[12](?!\.low_rank))|tasks)\.")


class Read(Protocol):
    """Reads a tensor of the full model, or one expert's part of a stacked one."""

    def __call__(self, name: str, expert: int | None = None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Recipe:
    """How to make a tensor of the subnet.

    Attributes:
        shape: the tensor's shape, which is known before anything is read.
        make: makes it out of what it reads.
    """

    shape: torch.Size
    make: Callable[[Read], Tensor]


def build_recipes(
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
            name: recipe if is_gate(name) else replace(recipe, make=partial(_rounded, recipe.make, name, dtype))
            for name, recipe in found.items()
        }
    tied = {name: found[original] for name, original in tensors.tied.items() if name in tensors.names()}
    return {**found, **tied}


def rounded(tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """A tensor in a type of lower precision.

    Args:
        tensor: the tensor.
        name: what to call it in an error.
        dtype: the type.

    Raises:
        TaskMoEError: some of its values are no finite numbers there.
    """
    found = tensor.to(dtype)
    if not found.isfinite().all():
        raise TaskMoEError(
            f"{name}: has weights that are no finite numbers in {str(dtype).removeprefix('torch.')}; leave the model's "
            "precision, or take bfloat16"
        )
    return found


def read_weights(recipes: Mapping[str, Recipe], read: Read) -> dict[str, Tensor]:
    """All tensors of a subnet by name; those that share weights are the same object."""
    made = {recipe: recipe.make(read) for recipe in dict.fromkeys(recipes.values())}
    return {name: made[recipe] for name, recipe in recipes.items()}


def reader(tensors: MappedTensors, plan: Plan, rows: Mapping[str, Tensor], advance: Callable[[int], object]) -> Read:
    """Reads copies of tensors from the disk; weights with low-rank matrices of one pair folded into them.

    Args:
        tensors: the full model.
        plan: what becomes of it.
        rows: for tensors of which only some rows are kept, their indices (int64).
        advance: told of the number of bytes that have been read.
    """
    low_rank = {name for name in tensors.names() if name.endswith(TENSORS)} if plan.languages else set()

    def read_part(name: str, index: int) -> Tensor:
        tensor = tensors.expert(name, index)
        advance(tensor.nbytes)
        return tensor

    def read(name: str, expert: int | None = None) -> Tensor:
        if expert is not None:
            return read_part(name, expert)
        tensor = tensors.tensor(name, rows.get(name))
        advance(tensor.nbytes)
        factors = [name.removesuffix(".weight") + part for part in TENSORS]
        if plan.languages is None or low_rank.isdisjoint(factors):
            return tensor
        stack, _, _ = name.partition(".")
        return fold_low_rank(tensor, *map(read_part, factors, plan.languages[stack]))

    return read


def kept_bytes(tensors: MappedTensors, plan: Plan, rows: Mapping[str, Tensor]) -> int:
    """Bytes that are read for a subnet, those of the gates aside."""
    names = _shared_names(tensors, plan)
    shapes = [(tensors.mapped(name), len(rows[name]) if name in rows else None) for name in names]
    total = sum(mapped[:kept].nbytes for mapped, kept in shapes)
    if plan.languages is not None:
        total += sum(tensors.mapped(name)[0].nbytes for name in tensors.names() if name.endswith(TENSORS))
    for stack in plan.stacks.values():
        for layer in range(stack.layers):
            total += _network_bytes(tensors, stack, layer)
    return total


def _network_bytes(tensors: MappedTensors, stack: StackPlan, layer: int) -> int:
    """Bytes of the feed-forward networks that a layer keeps."""
    names = [_part_name(stack, layer, part) for part in PARTS]
    if layer not in stack.moe_layers:
        return sum(map(tensors.nbytes, names))
    count = stack.config.expert_count(layer)
    read = stack.gates[layer][0].numel() if stack.config.merge else len(stack.kept_experts(layer))
    return sum(tensors.nbytes(name) // count for name in names) * read


def ffn_dims(tensors: MappedTensors, stack: StackPlan) -> list[int]:
    """Hidden width, in the subnet, of the feed-forward network of each layer; in an MoE layer, that of an expert."""
    dims = []
    for layer in range(stack.layers):
        own = tensors.shape(_part_name(stack, layer, "fc1.bias"))[-1]
        folded = stack.form is StackForm.FOLDED and layer in stack.moe_layers and not stack.config.merge
        dims.append(own * len(stack.gates[layer][0][0]) if folded else own)
    return dims


def _shared_names(tensors: MappedTensors, plan: Plan) -> list[str]:
    names = [name for name in tensors.names() if name not in tensors.tied and not _OF_LAYERS.match(name)]
    return [name for name in names if plan.languages is None or not name.endswith(TENSORS)]


def _part_name(stack: StackPlan, layer: int, part: str) -> str:
    """The full model's name of a part of a layer's feed-forward network, or of its experts'."""
    prefix = f"{stack.config.stack}.layers.{layer}."
    return prefix + (f"moe.experts.{part.replace('.', '_')}" if layer in stack.moe_layers else part)


def is_gate(name: str) -> bool:
    """Whether a tensor of this name is one of gates, which compute in fp32 whatever the model does."""
    return ".router." in name or ".tasks." in name


def _recipes(
    tensors: MappedTensors, plan: Plan, rows: Mapping[str, Tensor], widths: Mapping[str, int]
) -> Iterator[tuple[str, Recipe]]:
    for name in _shared_names(tensors, plan):
        shape = tensors.mapped(name).shape
        kept = torch.Size((len(rows[name]), *shape[1:])) if name in rows else shape
        yield name, Recipe(kept, _reading(name))
    for name, stack in plan.stacks.items():
        dims = ffn_dims(tensors, stack)
        for layer in range(stack.layers):
            if layer in stack.moe_layers and stack.form is not StackForm.FOLDED:
                yield from _moe_layer(tensors, stack, layer)
                continue
            inputs = tensors.shape(_part_name(stack, layer, "fc2.bias"))[-1]
            shapes = part_shapes(inputs, widths.get(name, dims[layer]))
            for part in PARTS:
                make = partial(_dense_part, stack, layer, part, widths.get(name))
                yield f"{name}.layers.{layer}.{part}", Recipe(shapes[part], make)
        if stack.form in (StackForm.ROUTED, StackForm.PRUNED) and stack.config.restriction is None:
            yield from _gates(tensors, stack)


def _reading(name: str) -> Callable[[Read], Tensor]:
    return lambda read: read(name)


def _constant(tensor: Tensor) -> Recipe:
    return Recipe(tensor.shape, lambda read: tensor)


def _rounded(make: Callable[[Read], Tensor], name: str, dtype: torch.dtype, read: Read) -> Tensor:
    tensor = make(read)
    return rounded(tensor, name, dtype) if tensor.is_floating_point() else tensor


def _dense_part(stack: StackPlan, layer: int, part: str, width: int | None, read: Read) -> Tensor:
    """A part of a layer's only feed-forward network, folded or merged where the full model has experts."""
    name = _part_name(stack, layer, part)
    if layer in stack.moe_layers and stack.config.merge:
        tensor = _merged_part(stack, layer, part, 0, read)
    elif layer in stack.moe_layers:
        experts, weights = (table[0].tolist() for table in stack.gates[layer])
        tensor = fold(part, [read(name, expert) for expert in experts], weights)
    else:
        tensor = read(name)
    return tensor if width is None else pad(part, tensor, width)


def _merged_part(stack: StackPlan, layer: int, part: str, task: int, read: Read) -> Tensor:
    """A part of the network to which the experts of a task are merged, read one after the other."""
    merged: Tensor | None = None
    for expert, weight in zip(*(table[task].tolist() for table in stack.gates[layer])):
        own = read(_part_name(stack, layer, part), expert)
        own = own.to(torch.promote_types(own.dtype, torch.float32))
        merged = own.mul_(weight) if merged is None else merged.add_(own, alpha=weight)
    assert merged is not None
    return merged


def _moe_layer(tensors: MappedTensors, stack: StackPlan, layer: int) -> Iterator[tuple[str, Recipe]]:
    kept = stack.kept_experts(layer)
    for part in PARTS:
        name = _part_name(stack, layer, part)
        shape = torch.Size((len(kept), *tensors.shape(name)[1:]))
        own = partial(_merged_part, stack, layer, part) if stack.config.merge else partial(_expert_part, name)
        yield name, Recipe(shape, partial(_stacked, shape, own, kept))
    if stack.form in (StackForm.WHOLE, StackForm.PRUNED):
        name = f"{stack.config.stack}.layers.{layer}.moe.router.gate.weight"
        yield name, _constant(tensors.tensor(name)[list(kept)])


def _expert_part(name: str, expert: int, read: Read) -> Tensor:
    return read(name, expert)


def _stacked(shape: torch.Size, make: Callable[[int, Read], Tensor], experts: tuple[int, ...], read: Read) -> Tensor:
    """Some experts, made one after the other."""
    stacked: Tensor | None = None
    for place, expert in enumerate(experts):
        own = make(expert, read)
        stacked = own.new_empty(shape) if stacked is None else stacked
        stacked[place] = own
    assert stacked is not None
    return stacked


def _gates(tensors: MappedTensors, stack: StackPlan) -> Iterator[tuple[str, Recipe]]:
    """The gates of the kept tasks, which name the kept experts of a layer by their places among these."""
    assert stack.config.table is not None
    prefix = f"{stack.config.stack}.tasks."
    rows = [stack.config.table.names.index(task) for task in stack.tasks]
    if stack.config.by_task:
        yield prefix + "share", _constant(tensors.tensor(prefix + "share")[rows])
    if stack.config.merge:
        # Each task has an expert of its own.
        shape = len(stack.moe_layers), len(stack.tasks), 1
        yield prefix + "gates.experts", _constant(torch.arange(len(stack.tasks)).view(1, -1, 1).expand(shape).clone())
        yield prefix + "gates.weights", _constant(torch.ones(shape))
        return
    experts = [
        torch.searchsorted(torch.tensor(stack.kept_experts(layer)), stack.gates[layer][0]) for layer in stack.moe_layers
    ]
    yield prefix + "gates.experts", _constant(torch.stack(experts))
    yield prefix + "gates.weights", _constant(torch.stack([stack.gates[layer][1] for layer in stack.moe_layers]))
