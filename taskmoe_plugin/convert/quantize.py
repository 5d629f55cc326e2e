"""``quantize``: the weights of experts in few bits, everything else as it is or in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from taskmoe_plugin.convert.conversion import Conversion, Converted
from taskmoe_plugin.convert.source import Source
from taskmoe_plugin.errors import TaskMoEError, UsageError
from taskmoe_plugin.models.packed_experts import KEY, packed_entry
from taskmoe_plugin.moe.quantize import Packed, quantize
from taskmoe_plugin.parallel.manifest import is_stacked
from taskmoe_plugin.subnet.scratch import Scratch
from taskmoe_plugin.subnet.weights import is_gate, rounded


def quantize_experts(bits: int, group: int | None, dtype: torch.dtype | None) -> Conversion:
    """The conversion.

    Args:
        bits: of a weight of an expert.
        group: how many weights share a scale; None: those of a row.
        dtype: what other parameters are stored as, those of gates excepted; None: as they are.
    """
    return partial(_quantize, bits, group, dtype)


def _quantize(bits: int, group: int | None, dtype: torch.dtype | None, source: Source, scratch: Scratch) -> Converted:
    source.require(dense=False, remedy="only experts are quantised, and this has none")
    if KEY in source.state["model"]:
        raise TaskMoEError(f"{source.path}: is quantised already; give the checkpoint that it was made from")
    names = source.tensors.names()
    weights = [name for name in names if is_stacked(name) and name.endswith("_weight")]
    for name in weights:
        width = source.tensors.shape(name)[-1]
        if group is not None and width % group:
            raise UsageError(f"--group {group}: does not divide {width}, a width of the experts; give a divisor")
    model: dict[str, Any] = {name: _rest(source, name, dtype, scratch) for name in names if name not in weights}
    for name, original in source.tensors.tied.items():
        if name in model:
            model[name] = model[original]
    model[KEY] = {name: packed_entry(_packed(source, name, bits, group, scratch)) for name in weights}
    cfg = source.cfg
    trained = cfg["model"].moe_expert_bits
    if trained is not None and (trained, None) != (bits, group):
        raise UsageError(
            f"--bits {bits}: {source.path} was trained with --moe-expert-bits {trained}; give --bits {trained}, "
            "without --group"
        )
    # They are rounded now.
    cfg["model"].moe_expert_bits = None
    rest = "" if dtype is None else f", all other weights in {str(dtype).removeprefix('torch.')}"
    scales = "a row" if group is None else f"{group} weights"
    done = f"the weights of {len(weights) // 2} layers of experts have {bits} bits, with a scale for {scales}{rest}"
    return Converted(cfg, model, done)


def _rest(source: Source, name: str, dtype: torch.dtype | None, scratch: Scratch) -> Tensor:
    tensor = source.kept(name, scratch)
    if dtype is None or is_gate(name) or not tensor.is_floating_point():
        return tensor
    return rounded(source.tensors.tensor(name), name, dtype)


def _packed(source: Source, name: str, bits: int, group: int | None, scratch: Scratch) -> Packed:
    """A stacked parameter, made of one expert after the other."""
    count, *_, columns = source.tensors.shape(name)
    scales = []

    def codes() -> Iterator[Tensor]:
        for expert in range(count):
            weight = source.tensors.expert(name, expert)
            if not weight.isfinite().all():
                raise TaskMoEError(
                    f"{source.path}: {name} has weights that are no finite numbers; give an earlier checkpoint"
                )
            packed = quantize(weight, bits, group)
            scales.append(packed.scale)
            yield packed.codes

    return Packed(scratch.stack(codes(), count), torch.stack(scales), bits, columns)
