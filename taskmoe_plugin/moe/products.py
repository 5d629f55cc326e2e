"""Linear maps of many experts at once, each of its own rows."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from taskmoe_plugin.moe.groups import Groups
from taskmoe_plugin.moe.kernels import add_bias_

HOPPER, BLACKWELL = 9, 10  # major compute capabilities
ALIGNMENT = 8  # rows of half-precision matrices must be a multiple of 16 bytes


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor, groups: Groups, relu: bool = False) -> Tensor:
    """Map (A, I) to (A, O): rows of group e are multiplied by ``weight[e]``ᵀ, and ``bias[e]`` is added.

    On a GPU that has a kernel for it, all groups are one product, and the host need not know how many rows each has;
    elsewhere there is a product for each group that is not empty. The gradients of weight and bias are one tensor each,
    zeros for empty groups. Under autocast it computes in autocast's type.

    Args:
        x: the rows.
        weight: (E, O, I).
        bias: (E, O).
        groups: of the rows.
        relu: whether what is negative becomes zero.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            return grouped_linear(x.to(dtype), weight.to(dtype), bias.to(dtype), groups, relu)
    way = _Grouped if has_grouped_product(x, weight) else _Sliced
    return way.apply(x, weight, bias, groups, relu)  # type: ignore[no-any-return, no-untyped-call]


def has_grouped_product(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch has a fast kernel: half precision, a GPU of the Hopper generation or later, aligned widths.

    On older GPUs PyTorch's function copies the ends to the host and makes a product for each group, empty ones too.
    """
    if not (x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and hasattr(F, "grouped_mm")):
        return False
    if weight.size(1) % ALIGNMENT or weight.size(2) % ALIGNMENT:
        return False
    return _generation(x.device) >= HOPPER


@functools.cache
def _generation(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]


def _product(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    if a.dtype == torch.bfloat16:
        return F.grouped_mm(a, b, offs=ends)
    # The kernel is for bf16 alone; in fp16 it is used with inputs and outputs rounded, which costs 3 bits of precision
    # and a pass over the weights, where a product for each expert would cost launches by the hundred.
    return F.grouped_mm(a.bfloat16(), b.bfloat16(), offs=ends).to(a.dtype)


class _Grouped(torch.autograd.Function):
    """One product for all groups."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: Groups, relu: bool) -> Tensor:
        y = _product(x, weight.transpose(1, 2), groups.ends)
        add_bias_(y, bias, groups, relu)
        ctx.save_for_backward(x, weight, y if relu else None)
        ctx.groups = groups
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, positive = ctx.saved_tensors
        ends = ctx.groups.ends
        grad = _through_relu(grad.contiguous(), positive)
        grad_x = _product(grad, weight, ends) if ctx.needs_input_grad[0] else None
        grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_weight = _product(grad.t(), x, ends)
            if _leaves_garbage(x):
                grad_weight.masked_fill_(torch.diff(ends, prepend=ends.new_zeros(1)).eq(0).view(-1, 1, 1), 0)
        if ctx.needs_input_grad[2]:
            # A product with a one-hot matrix takes as long however rows are distributed over groups.
            grad_bias = ctx.groups.members(grad.dtype).t() @ grad
        return grad_x, grad_weight, grad_bias, None, None


def _through_relu(grad: Tensor, positive: Tensor | None) -> Tensor:
    return grad if positive is None else torch.ops.aten.threshold_backward(grad, positive, 0)


def _leaves_garbage(x: Tensor) -> bool:
    # On Blackwell the gradient of empty groups is not written.
    return x.is_cuda and _generation(x.device) >= BLACKWELL


class _Sliced(torch.autograd.Function):
    """A product for each group that is not empty, written where it belongs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: Groups, relu: bool) -> Tensor:
        ctx.slices = list(_slices(groups))
        y = x.new_empty(x.size(0), weight.size(1))
        for group, rows in ctx.slices:
            torch.addmm(bias[group], x[rows], weight[group].t(), out=y[rows])
        if relu:
            y.relu_()
        ctx.save_for_backward(x, weight, y if relu else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, positive = ctx.saved_tensors
        grad = _through_relu(grad, positive)
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias = grad.new_zeros(weight.shape[:2]) if ctx.needs_input_grad[2] else None
        empty = set(range(weight.size(0)))
        for group, rows in ctx.slices:
            empty.discard(group)
            if grad_weight is not None:
                torch.mm(grad[rows].t(), x[rows], out=grad_weight[group])
            if grad_bias is not None:
                torch.sum(grad[rows], dim=0, out=grad_bias[group])
            if grad_x is not None:
                torch.mm(grad[rows], weight[group], out=grad_x[rows])
        if grad_weight is not None:
            for group in empty:
                grad_weight[group].zero_()
        return grad_x, grad_weight, grad_bias, None, None


def _slices(groups: Groups) -> Iterator[tuple[int, slice]]:
    ends = groups.ends.tolist() if groups.counts is None else itertools.accumulate(groups.counts)
    start = 0
    for group, end in enumerate(ends):
        if end > start:
            yield group, slice(start, end)
        start = end
