"""What the memory's speed bounds between an MoE layer's products: biases, gathers, weighted sums.

On a GPU where Triton works each is one kernel, which reads and writes every value once; elsewhere a few of PyTorch's
operators. Both compute the same to rounding; the kernels add up in fp32.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from taskmoe_plugin.moe.groups import Groups

logger = logging.getLogger(__name__)


@functools.cache
def triton_kernels() -> ModuleType | None:
    """The kernels, where Triton is installed and can compile one; it needs a C compiler."""
    try:
        from taskmoe_plugin.moe import triton_kernels as found

        rows = torch.ones(2, 16, device="cuda")
        found.gather_sum(rows, torch.arange(2, device="cuda").view(2, 1), None, None, rows.shape)
    except Exception as error:  # whatever Triton, a compiler or a driver may raise
        logger.info("Triton does not work here (%s): MoE layers use PyTorch's operators", error)
        return None
    return found


def _fused(x: Tensor) -> ModuleType | None:
    return triton_kernels() if x.is_cuda else None


def add_bias_(y: Tensor, bias: Tensor, groups: Groups, relu: bool) -> None:
    """Add to each row of ``y`` (A, O), in place, the bias of its group; then, if asked to, zero what is negative.

    Args:
        y: the rows.
        bias: (E, O), in the type of ``y``.
        groups: of the rows.
        relu: whether to zero what is negative.
    """
    if kernels := _fused(y):
        kernels.add_bias_(y, bias, groups.owner, relu)
        return
    # A product with a one-hot matrix: no gather of rows as wide as the hidden layer.
    y.addmm_(groups.members(y.dtype), bias)
    if relu:
        y.relu_()


def gather_sum(y: Tensor, place: Tensor, weights: Tensor | None, index: Tensor | None, shape: Sequence[int]) -> Tensor:
    """Σ_k weight_nk · y[place_nk] for each of N tokens, zeros at padding: (T, B, C) in the type of ``y``.

    Args:
        y: (A, C).
        place: (N, K) int64; what is A or more counts as a row of zeros.
        weights: (N, K) fp32; None: all 1.
        index: (N,) int64, the place of each token among the T·B rows; None: its number.
        shape: (T, B, C).
    """
    if not place.numel() or not y.numel():
        return y.new_zeros(shape)
    if kernels := _fused(y):
        return kernels.gather_sum(y, place, weights, index, shape)  # type: ignore[no-any-return]
    missing = place.numel() - y.size(0)
    if missing:
        y = torch.cat([y, y.new_zeros(missing, y.size(1))])
    own = None if weights is None else weights.to(y.dtype)
    summed = F.embedding_bag(place, y, mode="sum", per_sample_weights=own)
    if index is not None:
        summed = y.new_zeros(math.prod(shape[:-1]), y.size(1)).index_copy_(0, index, summed)
    # No view, which the caller of an autograd function may not change in place.
    return torch.ops.aten._unsafe_view(summed, list(shape))  # type: ignore[no-any-return]


def gather_weighted(
    grad: Tensor, row: Tensor, weights: Tensor, order: Tensor, y: Tensor, with_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of ``gather_sum``: of y, weight_a · grad[row_a] (A, C), and of weights, ⟨grad[row_a], y_a⟩.

    Args:
        grad: (T, B, C), the gradient of the sums.
        row: (A,) int64, for each row of ``y`` the place of its token among the T·B.
        weights: (N, K) fp32.
        order: (A,) int64, for each row of ``y`` its place among the weights.
        y: (A, C); fewer rows where the last assignments were left out.
        with_weights: whether the gradient of the weights is wanted.

    Returns:
        (A, C) in the type of ``y``, and (N, K) fp32.
    """
    of_weights = torch.empty_like(weights) if with_weights else None
    if y.size(0) < weights.numel():
        order, row = order.narrow(0, 0, y.size(0)), row.narrow(0, 0, y.size(0))
        of_weights = None if of_weights is None else of_weights.zero_()
    if (kernels := _fused(y)) and y.numel():
        return kernels.gather_weighted(grad, row, weights, order, y, of_weights), of_weights
    each = grad.view(-1, y.size(1)).index_select(0, row)
    if of_weights is not None:
        products = (each * y).sum(1, dtype=torch.promote_types(y.dtype, weights.dtype))
        of_weights.view(-1).scatter_(0, order, products.to(weights.dtype))
    return each * weights.view(-1).index_select(0, order).to(y.dtype).unsqueeze(1), of_weights
