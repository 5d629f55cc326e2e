"""Assignments of tokens to experts, sorted by expert, so that each expert computes one contiguous slice."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MOST_SHORT = 2**15 - 1  # of int16, of which a GPU sorts four times as many a second as of int64


@dataclass(frozen=True)
class Assignments:
    """The A = N·K assignments of N tokens, sorted by expert; those of one expert in the order of the tokens.

    Attributes:
        order: (A,) int64, for each sorted assignment its place among the unsorted ones (N, K).
        place: (N, K) int64, for each unsorted one its place among the sorted ones.
        row: (A,) int64, for each sorted one the place of its token among the T·B flattened activations.
        owner: (A,), the expert of each sorted one; E for what has none, which comes last.
        ends: (E,) int32, where the assignments of each expert end.
        kept: (N, K) bool, False where an expert had no room; None when dropless. What was dropped has no expert.
    """

    order: Tensor
    place: Tensor
    row: Tensor
    owner: Tensor
    ends: Tensor
    kept: Tensor | None = None

    def layers(self) -> list[Assignments]:
        """The assignments in each of L layers, where all tensors have L as their first dimension."""
        parts = self.order, self.place, self.row, self.owner, self.ends
        return [Assignments(*each) for each in zip(*(part.unbind(0) for part in parts))]


def expert_capacity(factor: float, tokens: int, experts: int, k: int) -> int:
    """Most tokens one expert takes: ceil(factor · k · tokens / experts).

    With k = 1 this is Switch Transformer's equation 3, with k = 2 and factor 1 GShard's 2·tokens / experts.
    """
    return math.ceil(factor * k * tokens / experts)


def sort_assignments(experts: Tensor, num_experts: int, index: Tensor | None = None) -> Assignments:
    """Sort the assignments of N tokens by expert.

    Args:
        experts: (…, N, K) int64, the experts of each token, perhaps in several layers; E for a choice that is none.
        num_experts: E.
        index: (N,) int64, the place of each token among the flattened activations; None: its number.

    Returns:
        The assignments, each tensor with the leading dimensions of ``experts``.
    """
    k = experts.size(-1)
    keys = experts.to(torch.int16 if num_experts <= MOST_SHORT else torch.int64).flatten(-2)
    owner, order = keys.sort(dim=-1, stable=True)
    every = torch.arange(num_experts, device=owner.device, dtype=owner.dtype)
    ends = torch.searchsorted(owner, every.expand(*owner.shape[:-1], -1).contiguous(), right=True, out_int32=True)
    places = torch.arange(order.size(-1), device=order.device).expand_as(order)
    place = torch.empty_like(order).scatter_(-1, order, places).view_as(experts)
    token = order // k if k > 1 else order
    row = token if index is None else index.index_select(0, token.flatten()).view_as(token)
    return Assignments(order, place, row, owner, ends)


def drop_beyond(
    assignments: Assignments,
    experts: Tensor,
    turn: Tensor,
    capacity: int,
    ahead: Tensor | None = None,
    index: Tensor | None = None,
) -> Assignments:
    """Drop what exceeds a capacity.

    Each expert serves first choices before second ones and, among equals, tokens in turn, as in GShard's algorithm 1.

    Args:
        assignments: all assignments of N tokens.
        experts: (N, K) int64, the experts of each token, best first.
        turn: (N,) int64, the tokens in the order in which they are served.
        capacity: most assignments an expert takes.
        ahead: (K, E) int64, for each choice how many assignments of other processes an expert serves before.
        index: as of ``sort_assignments``.
    """
    tokens, k = experts.shape
    num_experts = assignments.ends.numel()
    in_turn = experts.index_select(0, turn).t().reshape(-1)
    owner, sorted_places = in_turn.sort(stable=True)
    ends = assignments.ends
    starts = torch.cat([ends.new_zeros(1), ends.narrow(0, 0, num_experts - 1)])
    rank = torch.arange(tokens * k, device=owner.device) - starts.index_select(0, owner)
    if ahead is not None:
        rank = rank + ahead[sorted_places // max(tokens, 1), owner]
    unsorted = turn.index_select(0, sorted_places % max(tokens, 1)) * k + sorted_places // max(tokens, 1)
    kept = torch.empty(tokens * k, dtype=torch.bool, device=owner.device).scatter_(0, unsorted, rank < capacity)
    kept = kept.view(tokens, k)
    # An expert that does not exist comes last.
    found = sort_assignments(experts.masked_fill(kept.logical_not(), num_experts), num_experts, index)
    return replace(found, kept=kept)
