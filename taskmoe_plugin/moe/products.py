"""Linear maps of many experts at once, each of its own rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

HOPPER, BLACKWELL = 9, 10  # major compute capabilities
ALIGNMENT = 8  # rows of half-precision matrices must be a multiple of 16 bytes


def grouped_linear(
    x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor, counts: Sequence[int] | None = None
) -> Tensor:
    """Map (A, I) to (A, O): rows of group e are multiplied by ``weight[e]``ᵀ, and ``bias[e]`` is added.

    On a GPU that has a kernel for it, all groups are one product, and the host need not know how many rows each has;
    elsewhere there is a product for each group that is not empty. The gradients of weight and bias are one tensor each,
    zeros for empty groups. Under autocast it computes in autocast's type.

    Args:
        x: the rows of group 0, then those of group 1, and so on.
        weight: (E, O, I).
        bias: (E, O).
        ends: (E,) int32, where the rows of each group end; the last end is A.
        counts: the number of rows of each group, where the host knows it.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    with torch.autocast(kind, enabled=False):
        if has_grouped_product(x, weight):
            return _Grouped.apply(x, weight, bias, ends)  # type: ignore[no-any-return, no-untyped-call]
        return _Sliced.apply(x, weight, bias, ends, counts)  # type: ignore[no-any-return, no-untyped-call]


def has_grouped_product(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch has a fast kernel: half precision, a GPU of the Hopper generation or later, aligned widths.

    On older GPUs PyTorch's function copies the ends to the host and makes a product for each group, empty ones too.
    """
    if not (x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and hasattr(F, "grouped_mm")):
        return False
    if weight.size(1) % ALIGNMENT or weight.size(2) % ALIGNMENT:
        return False
    return torch.cuda.get_device_capability(x.device)[0] >= HOPPER


def _product(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    # The kernel is for bf16 alone; in fp16 it is used with inputs and outputs rounded, which costs 3 bits of precision
    # and a pass over the weights, where a product for each expert would cost launches by the hundred.
    return F.grouped_mm(a.bfloat16(), b.bfloat16(), offs=ends).to(a.dtype)


class _Grouped(torch.autograd.Function):
    """One product for all groups."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor) -> Tensor:
        # Bias and its gradient are products with a one-hot matrix: no gather of rows as wide as the hidden layer.
        member = _members(ends, x)
        ctx.save_for_backward(x, weight, member, ends)
        return _product(x, weight.transpose(1, 2), ends).addmm_(member, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, member, ends = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = _product(grad, weight, ends) if ctx.needs_input_grad[0] else None
        grad_weight = _product(grad.t(), x, ends)
        if _leaves_garbage(x):
            grad_weight.masked_fill_(torch.diff(ends, prepend=ends.new_zeros(1)).eq(0).view(-1, 1, 1), 0)
        return grad_x, grad_weight, member.t() @ grad, None


def _members(ends: Tensor, x: Tensor) -> Tensor:
    """(A, E) in the type of x: 1 where a row is of a group."""
    row = torch.arange(x.size(0), device=x.device, dtype=ends.dtype)
    group = torch.searchsorted(ends, row, right=True)
    return x.new_zeros(x.size(0), ends.numel()).scatter_(1, group.unsqueeze(1), 1)


def _leaves_garbage(x: Tensor) -> bool:
    # On Blackwell the gradient of empty groups is not written.
    return x.is_cuda and torch.cuda.get_device_capability(x.device)[0] >= BLACKWELL


class _Sliced(torch.autograd.Function):
    """A product for each group that is not empty, written where it belongs."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor, counts: Sequence[int] | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.slices = list(_slices(ends, counts))
        y = x.new_empty(x.size(0), weight.size(1))
        for group, rows in ctx.slices:
            torch.addmm(bias[group], x[rows], weight[group].t(), out=y[rows])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight, grad_bias = torch.empty_like(weight), grad.new_zeros(weight.shape[:2])
        empty = set(range(weight.size(0)))
        for group, rows in ctx.slices:
            empty.discard(group)
            torch.mm(grad[rows].t(), x[rows], out=grad_weight[group])
            torch.sum(grad[rows], dim=0, out=grad_bias[group])
            if grad_x is not None:
                torch.mm(grad[rows], weight[group], out=grad_x[rows])
        for group in empty:
            grad_weight[group].zero_()
        return grad_x, grad_weight, grad_bias, None, None


def _slices(ends: Tensor, counts: Sequence[int] | None) -> Iterator[tuple[int, slice]]:
    start = 0
    for group, end in enumerate(ends.tolist() if counts is None else _running_sum(counts)):
        if end > start:
            yield group, slice(start, end)
        start = end


def _running_sum(counts: Sequence[int]) -> Iterator[int]:
    total = 0
    for count in counts:
        total += count
        yield total
