"""Products with weights in few bits, on CPUs whose PyTorch has them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from taskmoe_plugin.moe.quantize import Packed, unpack, zero_of

# What PyTorch's product with 4-bit weights takes: how many of a row's weights share a scale, and multiples of rows.
GROUPS = (256, 128, 64, 32)
ROWS = 16
# That with 8-bit weights reads so many of a row at once, the last ones too.
COLUMNS = 16
Product = Callable[[Tensor], Tensor]


def packed_product(weight: Packed) -> Product | None:
    """x (A, C) → x · weightᵀ (A, O) without making floating point numbers of the weights; computes in bf16.

    The functions are PyTorch's own, private and of some versions alone.

    Args:
        weight: (O, C), on a CPU.

    Returns:
        None if there is none for these bits and this shape.
    """
    make = {4: _int4, 8: _int8}.get(weight.bits)
    try:
        product = make(weight) if make else None
        if product is not None:
            product(torch.zeros(1, weight.columns))
    except (AttributeError, RuntimeError):
        return None
    return product


def _int4(weight: Packed) -> Product | None:
    rows, groups = weight.scale.shape
    group = weight.columns // groups
    if groups == 1:
        group = next((each for each in GROUPS if weight.columns % each == 0), 0)
    if group not in GROUPS or rows % ROWS:
        return None
    codes = unpack(weight.codes, 4)[:, : weight.columns].int()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scale = weight.scale.repeat_interleave(weight.columns // group // groups, dim=1).t()
    scale_and_zero = torch.stack([scale, torch.zeros_like(scale)], dim=-1).bfloat16().contiguous()

    def product(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x.bfloat16().contiguous(), packed, group, scale_and_zero)
        return y.to(x.dtype)

    return product


def _int8(weight: Packed) -> Product | None:
    if weight.scale.size(-1) > 1 or weight.columns % COLUMNS:
        return None
    codes = (weight.codes.short() - int(zero_of(8))).char()
    scale = weight.scale.flatten().bfloat16()
    return lambda x: torch._weight_int8pack_mm(x.bfloat16().contiguous(), codes, scale).to(x.dtype)
