"""Dispatch and combine: bring tokens to their experts and the results back.

Assignments (token, expert) are sorted by expert, so that each expert computes one contiguous slice. Every step is a
gather, in both directions: nothing is added up atomically, nothing is of size tokens × experts × capacity, and the host
reads nothing of a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from taskmoe_plugin.moe.routing import Routing


@dataclass(frozen=True)
class Assignments:
    """The assignments of N tokens, sorted by expert.

    Attributes:
        order: (A,) int64, for each of the A = N·K sorted assignments its place among the unsorted ones (N, K).
        place: (N, K) int64, for each unsorted one its place among the sorted ones.
        ends: (E,) int32, where the assignments of each expert end.
        kept: (N, K) bool, False where an expert had no room; None when dropless. What was dropped is sorted last.
    """

    order: Tensor
    place: Tensor
    ends: Tensor
    kept: Tensor | None = None


def expert_capacity(factor: float, tokens: int, experts: int, k: int) -> int:
    """Most tokens one expert takes: ceil(factor · k · tokens / experts).

    With k = 1 this is Switch Transformer's equation 3, with k = 2 and factor 1 GShard's 2·tokens / experts.
    """
    return math.ceil(factor * k * tokens / experts)


def sort_assignments(experts: Tensor, num_experts: int) -> Assignments:
    """Sort the assignments of N tokens by expert; those of one expert keep their order.

    Args:
        experts: (N, K) int64, the experts of each token.
        num_experts: E.
    """
    owner, order = experts.reshape(-1).sort(stable=True)
    ends = torch.searchsorted(owner, torch.arange(num_experts, device=owner.device), right=True, out_int32=True)
    return Assignments(order, _inverse(order).view_as(experts), ends)


def _inverse(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))


def drop_beyond(
    assignments: Assignments, experts: Tensor, turn: Tensor, capacity: int, ahead: Tensor | None = None
) -> Assignments:
    """Drop what exceeds a capacity.

    Each expert serves first choices before second ones and, among equals, tokens in turn, as in GShard's algorithm 1.

    Args:
        assignments: all assignments of N tokens.
        experts: (N, K) int64, the experts of each token, best first.
        turn: (N,) int64, the tokens in the order in which they are served.
        capacity: most assignments an expert takes.
        ahead: (K, E) int64, for each choice how many assignments of other processes an expert serves before.
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
    found = sort_assignments(experts.masked_fill(kept.logical_not(), num_experts), num_experts)
    return replace(found, kept=kept)


@dataclass(frozen=True)
class Dispatched:
    """What ``combine`` needs, and who computes what.

    Attributes:
        assignments: this process's assignments.
        routing: what they are made of.
        size: T·B, the rows of the flattened activations.
        ends: (E',) int32, where the rows of each of the E' experts of this process end.
        counts: their numbers of rows, where the host knows them.
        exchange: what a dispatcher over several processes has to know to send the results back.
    """

    assignments: Assignments
    routing: Routing
    size: int
    ends: Tensor
    counts: Sequence[int] | None
    exchange: Any = None


class Dispatcher(Protocol):
    """Brings tokens to experts and results back. Has no parameters."""

    def dispatch(
        self, x: Tensor, routing: Routing, num_experts: int, capacity_factor: float, shuffle: bool = False
    ) -> tuple[Tensor, Dispatched]:
        """The rows (A, C) that the experts of this process compute, sorted by expert.

        Args:
            x: (T·B, C) activations.
            routing: who computes what.
            num_experts: E.
            capacity_factor: an expert takes at most ceil(factor · K · N / E) assignments; 0: dropless.
            shuffle: whether it takes them in random order, rather than sentence after sentence.
        """
        ...

    def combine(self, outputs: Tensor, dispatched: Dispatched) -> Tensor:
        """The weighted sums (T·B, C) of the outputs (A, C) of each token's experts; zeros at padding."""
        ...


class LocalDispatcher:
    """For experts that are all in this process."""

    def dispatch(
        self, x: Tensor, routing: Routing, num_experts: int, capacity_factor: float, shuffle: bool = False
    ) -> tuple[Tensor, Dispatched]:
        experts, counts = routing.experts, None if routing.counts is None else routing.counts[0]
        if routing.gates.sparse:
            return _dispatch_some(x, routing, num_experts, counts)
        assignments = sort_assignments(experts, num_experts)
        ends = assignments.ends
        if capacity_factor:
            capacity = expert_capacity(capacity_factor, experts.size(0), num_experts, experts.size(1))
            assignments = drop_beyond(assignments, experts, serving_order(routing, shuffle), capacity)
            # The last expert computes what was dropped, for nothing: to leave it out, the host would have to count it.
            ends = torch.cat([assignments.ends.narrow(0, 0, num_experts - 1), ends.new_full((1,), experts.numel())])
        routing = with_dropped(routing, assignments)
        return gather(x, assignments, routing), Dispatched(assignments, routing, x.size(0), ends, counts)

    def combine(self, outputs: Tensor, dispatched: Dispatched) -> Tensor:
        return combine(outputs, dispatched)


def _dispatch_some(
    x: Tensor, routing: Routing, num_experts: int, counts: Sequence[int] | None
) -> tuple[Tensor, Dispatched]:
    """Dispatch where some choices are none, which have weight 0."""
    # An expert that does not exist comes last.
    experts = routing.experts.masked_fill(routing.weights == 0, num_experts)
    assignments = sort_assignments(experts, num_experts)
    ends, every = assignments.ends, experts.numel()
    if counts is not None:
        count = sum(counts)
    elif x.device.type == "cpu":
        count = int(ends[-1])
    else:
        # To leave them out, the host would have to count: the last expert computes them, for nothing.
        count, ends = every, torch.cat([ends.narrow(0, 0, num_experts - 1), ends.new_full((1,), every)])
    rows = gather(x, assignments, routing)[:count]
    return rows, Dispatched(assignments, routing, x.size(0), ends, counts)


def serving_order(routing: Routing, shuffle: bool = False) -> Tensor:
    """(N,) int64, the tokens sentence after sentence: who is dropped must not depend on how rows are padded.

    Args:
        routing: of the tokens.
        shuffle: put them in random order instead, which favours no sentence: random token selection (Z-code M3, Kim et
            al. 2021).
    """
    row = routing.tokens.row
    return torch.randperm(row.numel(), device=row.device) if shuffle else row.argsort(stable=True)


def with_dropped(routing: Routing, assignments: Assignments) -> Routing:
    """The routing with zero weights for what was dropped, and its share."""
    if assignments.kept is None:
        return routing
    dropped = assignments.kept.logical_not()
    share = dropped.float().sum() / max(dropped.numel(), 1)
    return replace(routing, weights=routing.weights.masked_fill(dropped, 0.0), dropped=share)


def gather(x: Tensor, assignments: Assignments, routing: Routing) -> Tensor:
    """The rows (A, C) of ``x`` (T·B, C), sorted by expert."""
    token = assignments.order // routing.experts.size(1)
    index = routing.tokens.index
    return _Gather.apply(x, token if index is None else index.index_select(0, token), assignments.place, index)  # type: ignore[no-any-return, no-untyped-call]


def combine(outputs: Tensor, dispatched: Dispatched) -> Tensor:
    """The weighted sums (T·B, C) of outputs (A, C), in the dtype of the outputs; the last may be left out."""
    routing, assignments = dispatched.routing, dispatched.assignments
    missing = assignments.order.numel() - outputs.size(0)
    if missing:
        # What is sorted last, and has no weight.
        outputs = torch.cat([outputs, outputs.new_zeros(missing, outputs.size(1))])
    weights = routing.weights.to(outputs.dtype)
    return _Combine.apply(outputs, weights, assignments.order, assignments.place, routing.tokens.index, dispatched.size)  # type: ignore[no-any-return, no-untyped-call]


def _spread(rows: Tensor, index: Tensor | None, size: int) -> Tensor:
    """Tokens (N, C) among the zeros (size, C) of padding."""
    return rows if index is None else rows.new_zeros(size, rows.size(1)).index_copy_(0, index, rows)


class _Gather(torch.autograd.Function):
    """x (T·B, C) → x[row] (A, C); backward gathers too, for it knows where each token went."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, row: Tensor, place: Tensor, index: Tensor | None) -> Tensor:
        ctx.save_for_backward(place, index)
        ctx.size = x.size(0)
        return x.index_select(0, row)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        place, index = ctx.saved_tensors
        summed = grad.new_zeros(0, grad.size(1)) if not place.numel() else F.embedding_bag(place, grad, mode="sum")
        return _spread(summed, index, ctx.size), None, None, None


class _Combine(torch.autograd.Function):
    """y (A, C), weights (N, K) → Σ_k weight_k · y[place_k] (T·B, C)."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weights: Tensor, order: Tensor, place: Tensor, index: Tensor | None, size: int
    ) -> Tensor:
        ctx.save_for_backward(y, weights, order, place, index)
        if not place.numel():
            return y.new_zeros(size, y.size(1))
        return _spread(F.embedding_bag(place, y, mode="sum", per_sample_weights=weights), index, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, weights, order, place, index = ctx.saved_tensors
        token = order // weights.size(1)
        # One row for each assignment, in sorted order.
        each = grad.index_select(0, token if index is None else index.index_select(0, token))
        grad_weights = None
        if ctx.needs_input_grad[1]:
            by_assignment = torch.bmm(each.unsqueeze(1), y.unsqueeze(2)).flatten()
            grad_weights = by_assignment.index_select(0, place.flatten()).view_as(weights)
        return each * weights.flatten().index_select(0, order).unsqueeze(1), grad_weights, None, None, None, None
