"""Dispatch and combine: bring tokens to their experts and the results back.

Assignments (token, expert) are sorted by expert, so that each expert computes one contiguous slice. Nothing of size
tokens × experts × capacity is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dispatch:
    """Which expert computes which token.

    Attributes:
        token: (A,) int64, the token of each assignment; assignments of one expert are contiguous, experts ascend.
        weight: (A,) fp32, what the expert's output is multiplied by.
        ends: (E,) int32, where the assignments of each expert end among the A.
        dropped: assignments that exceeded an expert's capacity and are not among the A.
        known_counts: ``counts``, if they were known beforehand.
    """

    token: Tensor
    weight: Tensor
    ends: Tensor
    dropped: int
    known_counts: list[int] | None = None

    @cached_property
    def counts(self) -> list[int]:
        """E ints that sum to A, the number of assignments of each expert. To read them a GPU must be waited for."""
        if self.known_counts is not None:
            return self.known_counts
        return torch.diff(self.ends, prepend=self.ends.new_zeros(1)).tolist()


def expert_capacity(factor: float, tokens: int, experts: int, k: int) -> int:
    """Most tokens one expert takes: ceil(factor · k · tokens / experts).

    With k = 1 this is Switch Transformer's equation 3, with k = 2 and factor 1 GShard's 2·tokens / experts.
    """
    return math.ceil(factor * k * tokens / experts)


def make_dispatch(
    experts: Tensor,
    weights: Tensor,
    num_experts: int,
    capacity: int | None = None,
    ahead: Tensor | None = None,
    known_counts: list[int] | None = None,
) -> Dispatch:
    """Sort the assignments of N tokens by expert.

    With a capacity, each expert serves first choices before second ones and, among equals, earlier tokens before
    later ones, as in GShard's algorithm 1; assignments beyond it are dropped, and the weights of the others stay.

    Args:
        experts: (N, K) int64, the experts of each token, best first.
        weights: (N, K) fp32.
        num_experts: E.
        capacity: most assignments an expert takes; None for dropless.
        ahead: (K, E) int64, for each choice how many assignments of other processes an expert serves before.
        known_counts: the number of assignments of each expert, if it is known.
    """
    tokens, k = experts.shape
    by_choice = experts.t().reshape(-1)
    in_order, order = by_choice.sort(stable=True)
    every_expert = torch.arange(num_experts, device=experts.device)
    dropped = 0
    if capacity is not None:
        first = torch.searchsorted(in_order, every_expert)
        rank = torch.arange(order.numel(), device=order.device) - first[in_order]
        if ahead is not None:
            rank += ahead[order // max(tokens, 1), in_order]
        order, in_order = order[rank < capacity], in_order[rank < capacity]
        dropped = tokens * k - order.numel()
    ends = torch.searchsorted(in_order, every_expert, right=True, out_int32=True)
    weight = weights.t().reshape(-1).index_select(0, order)
    return Dispatch(order % max(tokens, 1), weight, ends, dropped, known_counts)


def run_experts(x: Tensor, dispatch: Dispatch, experts: Mapping[int, Callable[[Tensor], Tensor]]) -> Tensor:
    """Weighted sum of the outputs of each token's experts.

    Args:
        x: (M, C) activations, of which ``dispatch.token`` names rows.
        dispatch: the assignments.
        experts: the expert of each index, mapping (a, C) to (a, C).

    Returns:
        (M, C) in the dtype of x; rows without an assignment are zero.
    """
    used = [expert for expert, count in enumerate(dispatch.counts) if count]
    if not used:
        return torch.zeros_like(x)
    slices = torch.split_with_sizes(x.index_select(0, dispatch.token), [dispatch.counts[expert] for expert in used])
    return combine(x, torch.cat([experts[expert](part) for expert, part in zip(used, slices)]), dispatch)


def combine(x: Tensor, outputs: Tensor, dispatch: Dispatch) -> Tensor:
    """Weighted sum of the outputs of each token's experts, where they are.

    Args:
        x: (M, C) the activations that were dispatched.
        outputs: (A, C) the experts' outputs, in the order of the assignments.
        dispatch: the assignments.

    Returns:
        (M, C) in the dtype of x; rows without an assignment are zero.
    """
    weighted = outputs * dispatch.weight.unsqueeze(1).to(outputs.dtype)
    return x.new_zeros(x.shape, dtype=outputs.dtype).index_add(0, dispatch.token, weighted).to(x.dtype)
