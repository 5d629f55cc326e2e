"""The tensors of a subnet, read from the checkpoint one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from taskmoe_plugin.subnet.checkpoint import MappedTensors
from taskmoe_plugin.subnet.fold import FeedForward, fold, pad
from taskmoe_plugin.subnet.plan import Fate, Plan, StackPlan

_FFN = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
_OF_LAYERS = re.compile(r"(encoder|decoder)\.(layers\.\d+\.(moe|fc1|fc2)|tasks)\.")
Read = Callable[[str], Tensor]


def read_weights(
    tensors: MappedTensors,
    plan: Plan,
    rows: Mapping[str, Tensor],
    widths: Mapping[str, int],
    dtype: torch.dtype | None,
    advance: Callable[[int], object],
) -> dict[str, Tensor]:
    """The tensors of a subnet by name; tensors that share weights are the same object.

    Args:
        tensors: the full model.
        plan: what becomes of it.
        rows: for tensors of which only some rows are kept, their indices (int64).
        widths: the hidden width that feed-forward networks outside MoE layers are padded to, for stacks that need it.
        dtype: what floating-point weights are stored as; None: as they are, folded ones in fp32.
        advance: told of the number of bytes that have been read.
    """
    weights: dict[str, Tensor] = {}

    def read(name: str) -> Tensor:
        tensor = tensors.tensor(name, rows.get(name))
        advance(tensor.nbytes)
        return tensor

    for name, tensor in _subnet_tensors(tensors, plan, widths, read):
        # A gate computes in fp32 whatever the model does.
        rounded = dtype and tensor.is_floating_point() and ".router." not in name
        weights[name] = tensor.to(dtype) if rounded else tensor
    for name, original in tensors.tied.items():
        if name in tensors.names():
            weights[name] = weights[original]
    return weights


def kept_bytes(tensors: MappedTensors, plan: Plan, rows: Mapping[str, Tensor]) -> int:
    """Bytes that ``read_weights`` reads, those of the gates aside."""
    names = _shared_names(tensors)
    for stack in plan.stacks.values():
        for layer in range(stack.layers):
            names += [prefix + part for prefix in _networks(stack, layer) for part in _FFN]
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


def _subnet_tensors(
    tensors: MappedTensors, plan: Plan, widths: Mapping[str, int], read: Read
) -> Iterator[tuple[str, Tensor]]:
    for name in _shared_names(tensors):
        yield name, read(name)
    for name, stack in plan.stacks.items():
        for layer in range(stack.layers):
            if layer in stack.moe_layers and stack.fate is not Fate.FOLDED:
                yield from _moe_layer(tensors, stack, layer, read)
                continue
            ffn = _feed_forward(stack, layer, read)
            wide = pad(ffn, widths[name]) if name in widths else ffn
            parts = wide.fc1_weight, wide.fc1_bias, wide.fc2_weight, wide.fc2_bias
            yield from ((f"{name}.layers.{layer}.{part}", tensor) for part, tensor in zip(_FFN, parts))
        if stack.fate is Fate.ROUTED:
            yield f"{name}.tasks.share", _kept_share(tensors, stack)


def _feed_forward(stack: StackPlan, layer: int, read: Read) -> FeedForward:
    prefix = f"{stack.config.stack}.layers.{layer}."
    if layer not in stack.moe_layers:
        return FeedForward(*(read(prefix + part) for part in _FFN))
    experts, weights = (table[0].tolist() for table in stack.gates[layer])
    return fold(
        [FeedForward(*(read(f"{prefix}moe.experts.{expert}.{part}") for part in _FFN)) for expert in experts], weights
    )


def _moe_layer(tensors: MappedTensors, stack: StackPlan, layer: int, read: Read) -> Iterator[tuple[str, Tensor]]:
    for prefix in _networks(stack, layer):
        yield from ((prefix + part, read(prefix + part)) for part in _FFN)
    router = f"{stack.config.stack}.layers.{layer}.moe.router."
    if stack.fate is Fate.WHOLE:
        yield from ((name, tensors.tensor(name)) for name in tensors.names() if name.startswith(router))
    else:
        yield from zip((router + "experts", router + "weights"), stack.gates[layer])


def _kept_share(tensors: MappedTensors, stack: StackPlan) -> Tensor:
    assert stack.config.table is not None
    share = tensors.tensor(f"{stack.config.stack}.tasks.share")
    return share[[stack.config.table.names.index(task) for task in stack.tasks]]
