"""Dispatch and combine: bring tokens to their experts and the results back.

Every step is a gather, in both directions: nothing is added up atomically, nothing is of size tokens × experts ×
capacity, and the host reads nothing of a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from taskmoe_plugin.moe.assignments import Assignments, drop_beyond, expert_capacity
from taskmoe_plugin.moe.groups import Groups
from taskmoe_plugin.moe.kernels import gather_sum, gather_weighted
from taskmoe_plugin.moe.routing import Routing


@dataclass(frozen=True)
class Dispatched:
    """What ``combine`` needs, and who computes what.

    Attributes:
        assignments: this process's assignments.
        routing: what they are made of.
        shape: that of the activations, (T, B, C).
        groups: which rows each of the experts of this process computes.
        exchange: what a dispatcher over several processes has to know to send the results back.
    """

    assignments: Assignments
    routing: Routing
    shape: torch.Size
    groups: Groups
    exchange: Any = None


class Dispatcher(Protocol):
    """Brings tokens to experts and results back. Has no parameters."""

    def dispatch(
        self, x: Tensor, routing: Routing, num_experts: int, capacity_factor: float, shuffle: bool = False
    ) -> tuple[Tensor, Dispatched]:
        """The rows (A, C) that the experts of this process compute, sorted by expert.

        Args:
            x: (T, B, C) activations.
            routing: who computes what.
            num_experts: E.
            capacity_factor: an expert takes at most ceil(factor · K · N / E) assignments; 0: dropless.
            shuffle: whether it takes them in random order, rather than sentence after sentence.
        """
        ...

    def combine(self, outputs: Tensor, dispatched: Dispatched) -> Tensor:
        """The weighted sums (T, B, C) of the outputs (A, C) of each token's experts; zeros at padding."""
        ...


class LocalDispatcher:
    """For experts that are all in this process."""

    def dispatch(
        self, x: Tensor, routing: Routing, num_experts: int, capacity_factor: float, shuffle: bool = False
    ) -> tuple[Tensor, Dispatched]:
        assignments, experts = routing.assignments, routing.experts
        counts = None if routing.counts is None else routing.counts[0]
        partly = routing.gates.sparse
        if capacity_factor and not partly:
            capacity = expert_capacity(capacity_factor, experts.size(0), num_experts, experts.size(1))
            turn = serving_order(routing, shuffle)
            assignments = drop_beyond(assignments, experts, turn, capacity, index=routing.tokens.index)
            routing, partly = with_dropped(routing, assignments), True
        # A pruned layer may have fewer experts than the gates of its stack have places for.
        ends = assignments.ends
        if ends.numel() != num_experts:
            ends = ends.narrow(0, 0, num_experts)
        rows, groups = assignments.row, Groups(ends, assignments.owner, counts)
        if partly:
            rows, groups = _leave_out(rows, groups, num_experts)
        return gather(x, rows, assignments, routing), Dispatched(assignments, routing, x.shape, groups)

    def combine(self, outputs: Tensor, dispatched: Dispatched) -> Tensor:
        return combine(outputs, dispatched)


def _leave_out(rows: Tensor, groups: Groups, num_experts: int) -> tuple[Tensor, Groups]:
    """Compute nothing for choices that are none: they are sorted last, and have weight 0."""
    ends, every = groups.ends, rows.numel()
    if groups.counts is not None or ends.device.type == "cpu":
        count = int(ends[-1]) if groups.counts is None else sum(groups.counts)
        return rows.narrow(0, 0, count), Groups(ends, groups.owner.narrow(0, 0, count), groups.counts)
    # To leave them out, the host would have to count: the last expert computes them, for nothing.
    ends = torch.cat([ends.narrow(0, 0, num_experts - 1), ends.new_full((1,), every)])
    return rows, Groups(ends, groups.owner.clamp(max=num_experts - 1))


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


def gather(x: Tensor, rows: Tensor, assignments: Assignments, routing: Routing) -> Tensor:
    """The rows (A, C) of ``x`` (T, B, C) that assignments compute; the last of these may be left out."""
    return _Gather.apply(x, rows, assignments.place, routing.tokens.index)  # type: ignore[no-any-return, no-untyped-call]


def combine(outputs: Tensor, dispatched: Dispatched) -> Tensor:
    """The weighted sums (T, B, C) of outputs (A, C), in the dtype of the outputs; the last may be left out."""
    routing, assignments = dispatched.routing, dispatched.assignments
    return _Combine.apply(outputs, routing.weights, assignments, routing.tokens.index, dispatched.shape)  # type: ignore[no-any-return, no-untyped-call]


class _Gather(torch.autograd.Function):
    """x (T, B, C) → x[row] (A, C); backward gathers too, for it knows where each token went."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, row: Tensor, place: Tensor, index: Tensor | None) -> Tensor:
        ctx.place, ctx.index, ctx.shape = place, index, x.shape
        return x.reshape(-1, x.size(-1)).index_select(0, row)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return gather_sum(grad.contiguous(), ctx.place, None, ctx.index, ctx.shape), None, None, None


class _Combine(torch.autograd.Function):
    """y (A, C), weights (N, K) → Σ_k weight_k · y[place_k] (T, B, C)."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weights: Tensor, assignments: Assignments, index: Tensor | None, shape: torch.Size
    ) -> Tensor:
        ctx.save_for_backward(y, weights)
        ctx.assignments = assignments
        return gather_sum(y, assignments.place, weights, index, shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, weights = ctx.saved_tensors
        of_weights: bool = ctx.needs_input_grad[1]
        row, order = ctx.assignments.row, ctx.assignments.order
        return *gather_weighted(grad.contiguous(), row, weights, order, y, of_weights), None, None, None
