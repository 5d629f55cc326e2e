"""The kernels of ``kernels``, in Triton: a program for each row. Sums are made in fp32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 4096  # columns that a program has in its registers at once


def _block(columns: int) -> int:
    return min(int(triton.next_power_of_2(columns)), WIDEST)


@triton.jit
def _add_bias(y, bias, owner, RELU: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    group = tl.load(owner + row).to(tl.int64)
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < COLUMNS
        at = y + row * COLUMNS + column
        value = tl.load(at, mask=inside).to(tl.float32)
        value += tl.load(bias + group * COLUMNS + column, mask=inside).to(tl.float32)
        if RELU:
            value = tl.where(value < 0, 0.0, value)  # what is no number stays none
        tl.store(at, value.to(y.dtype.element_ty), mask=inside)


def add_bias_(y: Tensor, bias: Tensor, owner: Tensor, relu: bool) -> None:
    """See ``kernels.add_bias_``; ``y`` is contiguous."""
    rows, columns = y.shape
    if rows:
        _add_bias[(rows,)](y, bias, owner, RELU=relu, COLUMNS=columns, BLOCK=_block(columns))


@triton.jit(do_not_specialize=["rows"])
def _gather_sum(
    y, place, weights, index, out, rows,
    K: tl.constexpr, WEIGHTED: tl.constexpr, INDEXED: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    to = tl.load(index + token) if INDEXED else token
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < COLUMNS
        total = tl.zeros([BLOCK], tl.float32)
        for k in range(K):
            at = tl.load(place + token * K + k)
            value = tl.load(y + at * COLUMNS + column, mask=inside & (at < rows), other=0.0).to(tl.float32)
            if WEIGHTED:
                value *= tl.load(weights + token * K + k)
            total += value
        tl.store(out + to * COLUMNS + column, total.to(out.dtype.element_ty), mask=inside)


def gather_sum(y: Tensor, place: Tensor, weights: Tensor | None, index: Tensor | None, shape: Sequence[int]) -> Tensor:
    """See ``kernels.gather_sum``; ``y`` and ``weights`` are contiguous."""
    tokens, k = place.shape
    rows, columns = y.shape
    out = y.new_empty(shape) if index is None else y.new_zeros(shape)
    _gather_sum[(tokens,)](
        y, place, weights, index, out, rows,
        K=k, WEIGHTED=weights is not None, INDEXED=index is not None, COLUMNS=columns, BLOCK=_block(columns),
    )  # fmt: skip
    return out


@triton.jit
def _gather_weighted(
    grad, row, weights, order, y, out, of_weights,
    WITH_WEIGHTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    this = tl.program_id(0).to(tl.int64)
    source = tl.load(row + this)
    unsorted = tl.load(order + this)
    weight = tl.load(weights + unsorted)
    product = tl.zeros([BLOCK], tl.float32)
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < COLUMNS
        value = tl.load(grad + source * COLUMNS + column, mask=inside, other=0.0).to(tl.float32)
        if WITH_WEIGHTS:
            product += value * tl.load(y + this * COLUMNS + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + this * COLUMNS + column, (value * weight).to(out.dtype.element_ty), mask=inside)
    if WITH_WEIGHTS:
        tl.store(of_weights + unsorted, tl.sum(product, axis=0))


def gather_weighted(
    grad: Tensor, row: Tensor, weights: Tensor, order: Tensor, y: Tensor, of_weights: Tensor | None
) -> Tensor:
    """See ``kernels.gather_weighted``; all are contiguous. ``of_weights`` (N, K) fp32 is filled, if given."""
    rows, columns = y.shape
    out = torch.empty_like(y)
    _gather_weighted[(rows,)](
        grad, row, weights, order, y, out, of_weights,
        WITH_WEIGHTS=of_weights is not None, COLUMNS=columns, BLOCK=_block(columns),
    )  # fmt: skip
    return out
