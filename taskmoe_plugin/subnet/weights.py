"""The tensors of a subnet, read from the checkpoint one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from taskmoe_plugin.subnet.checkpoint import MappedTensors
from taskmoe_plugin.subnet.fold import FeedForward, fold
from taskmoe_plugin.subnet.plan import Fate, Plan, StackPlan

_OF_GATES = re.compile(r"(encoder|decoder)\.(layers\.\d+\.moe|tasks)\.")
_FFN = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


def read_weights(
    tensors: MappedTensors,
    plan: Plan,
    rows: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    advance: Callable[[int], object],
) -> dict[str, Tensor]:
    """The tensors of a subnet by name; tensors that share weights are the same object.

    Layers have their own widths: nothing is padded.

    Args:
        tensors: the full model.
        plan: what becomes of it.
        rows: for tensors of which only some rows are kept, their indices (int64).
        dtype: what floating-point weights are stored as; None: as they are, folded ones in fp32.
        advance: told of the number of bytes that have been read.
    """
    weights: dict[str, Tensor] = {}

    def read(name: str) -> Tensor:
        tensor = tensors.tensor(name, rows.get(name))
        advance(tensor.nbytes)
        return tensor

    for name, tensor in _subnet_tensors(tensors, plan, read):
        # A gate computes in fp32 whatever the model does.
        rounded = dtype and tensor.is_floating_point() and ".router." not in name
        weights[name] = tensor.to(dtype) if rounded else tensor
    for name, original in tensors.tied.items():
        if name in tensors.names():
            weights[name] = weights[original]
    return weights


def kept_bytes(tensors: MappedTensors, plan: Plan, rows: Mapping[str, Tensor]) -> int:
    """Bytes that ``read_weights`` reads, those of the routers aside."""
    total = 0
    for name in _kept_names(tensors, plan):
        mapped = tensors.mapped(name)
        total += mapped[0].nbytes * rows[name].numel() if name in rows else mapped.nbytes
    return total


def _kept_names(tensors: MappedTensors, plan: Plan) -> Iterator[str]:
    yield from _shared_names(tensors)
    for stack in plan.stacks.values():
        for layer in stack.moe_layers:
            yield from (f"{prefix}{name}" for prefix in _expert_prefixes(stack, layer) for name in _FFN)


def _shared_names(tensors: MappedTensors) -> list[str]:
    return [name for name in tensors.names() if name not in tensors.tied and not _OF_GATES.match(name)]


def _expert_prefixes(stack: StackPlan, layer: int) -> list[str]:
    return [f"{stack.config.stack}.layers.{layer}.moe.experts.{index}." for index in stack.kept_experts(layer)]


def _subnet_tensors(tensors: MappedTensors, plan: Plan, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name in _shared_names(tensors):
        yield name, read(name)
    for name, stack in plan.stacks.items():
        for layer in stack.moe_layers:
            prefix = f"{name}.layers.{layer}."
            if stack.fate is Fate.FOLDED:
                experts, weights = (table[0].tolist() for table in stack.gates[layer])
                parts = [_feed_forward(read, f"{prefix}moe.experts.{expert}.") for expert in experts]
                ffn = fold(parts, weights)
                yield from zip((prefix + part for part in _FFN), _parts(ffn))
                continue
            for expert in _expert_prefixes(stack, layer):
                yield from ((expert + part, read(expert + part)) for part in _FFN)
            yield from _router(tensors, stack, layer, prefix + "moe.router.")
        if stack.fate is Fate.ROUTED:
            yield f"{name}.tasks.share", _kept_share(tensors, stack)


def _feed_forward(read: Callable[[str], Tensor], prefix: str) -> FeedForward:
    return FeedForward(*(read(prefix + part) for part in _FFN))


def _parts(ffn: FeedForward) -> tuple[Tensor, ...]:
    return ffn.fc1_weight, ffn.fc1_bias, ffn.fc2_weight, ffn.fc2_bias


def _router(tensors: MappedTensors, stack: StackPlan, layer: int, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if stack.fate is Fate.WHOLE:
        yield from ((name, tensors.tensor(name)) for name in tensors.names() if name.startswith(prefix))
    else:
        yield from zip((prefix + "experts", prefix + "weights"), stack.gates[layer])


def _kept_share(tensors: MappedTensors, stack: StackPlan) -> Tensor:
    assert stack.config.table is not None
    share = tensors.tensor(f"{stack.config.stack}.tasks.share")
    return share[[stack.config.table.names.index(task) for task in stack.tasks]]
