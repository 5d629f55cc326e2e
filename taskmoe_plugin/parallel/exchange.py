"""Dispatch to experts that are spread over processes: tokens are brought to them by all-to-all.

Assignments are sorted by expert, and a process holds neighbouring experts, so what one process sends to another is a
contiguous block. fairscale's all-to-all exchanges blocks of one size, hence each block is filled up to the largest of
them; no token is ever dropped for want of room.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from fairscale.nn.moe.moe_layer import _AllToAll
from torch import Tensor

from taskmoe_plugin.moe import Assignments, Dispatched, Groups, Routing, drop_beyond, expert_capacity
from taskmoe_plugin.moe.dispatch import combine, gather, serving_order, with_dropped
from taskmoe_plugin.parallel.group import ExpertGroup
from taskmoe_plugin.parallel.placement import count_assignments, share_capacity, share_capacity_at_random


@dataclass(frozen=True)
class _Exchange:
    """Where the rows of this process are in what is exchanged.

    Attributes:
        room: rows of a block.
        sent: (A',) int64, the places of this process's assignments in what it sends, W blocks.
        received: (A'',) int64, the places of the rows that its experts compute in what it receives, sorted by expert.
    """

    room: int
    sent: Tensor
    received: Tensor


def _places(starts: Tensor, lengths: Tensor) -> Tensor:
    """The numbers from each start on, as many as its length, one run after the other; all int64."""
    before = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) + (starts - before).repeat_interleave(lengths)


class AllToAllDispatcher:
    """For experts that are spread over processes. All processes dispatch and combine together.

    Args:
        group: the processes.
    """

    def __init__(self, group: ExpertGroup) -> None:
        self.group = group

    def dispatch(
        self, x: Tensor, routing: Routing, num_experts: int, capacity_factor: float, shuffle: bool = False
    ) -> tuple[Tensor, Dispatched]:
        """See ``Dispatcher``. With a capacity, the batches of all processes count as one, in the order of their ranks
        or all shuffled.

        Where the host does not know the assignments of all processes beforehand, they are exchanged first; the loads of
        experts are then known of all batches together, and the shares of units become those of all of them.
        """
        assignments = routing.assignments
        if routing.counts is not None:
            sent = torch.tensor(routing.counts)
        else:
            routing, assignments, sent = self._count(routing, assignments, num_experts, capacity_factor, shuffle)
        exchange, counts = self._plan(sent, x.device)
        rows = gather(x, assignments.row.narrow(0, 0, exchange.sent.numel()), assignments, routing)
        size = self.group.size * exchange.room
        sent_rows = rows.new_zeros(size, rows.size(1)).index_copy(0, exchange.sent, rows)
        received = _AllToAll.apply(self.group.group, sent_rows).index_select(0, exchange.received)
        groups = Groups.of_counts(counts, x.device)
        return received, Dispatched(assignments, routing, x.shape, groups, exchange)

    def combine(self, outputs: Tensor, dispatched: Dispatched) -> Tensor:
        """See ``Dispatcher``."""
        exchange: _Exchange = dispatched.exchange
        returned = outputs.new_zeros(self.group.size * exchange.room, outputs.size(1))
        returned = _AllToAll.apply(self.group.group, returned.index_copy(0, exchange.received, outputs))
        return combine(returned.index_select(0, exchange.sent), dispatched)

    def _count(
        self, routing: Routing, assignments: Assignments, num_experts: int, capacity_factor: float, shuffle: bool
    ) -> tuple[Routing, Assignments, Tensor]:
        """Exchange how many assignments every process has, and drop what exceeds a capacity."""
        tokens, k = routing.experts.shape
        choices = self.group.gather(count_assignments(routing.experts, num_experts))
        by_expert = choices.sum(dim=(0, 1)).float()
        total = by_expert.sum().clamp(min=1)
        routing = replace(routing, load=by_expert / total, share=routing.share * (tokens * k / total))
        choices = choices.cpu()
        if not capacity_factor:
            return routing, assignments, choices.sum(1)
        capacity = expert_capacity(capacity_factor, int(choices.sum()) // k, num_experts, k)
        taken, ahead = (share_capacity_at_random if shuffle else share_capacity)(choices, capacity, self.group.rank)
        turn = serving_order(routing, shuffle)
        assignments = drop_beyond(
            assignments, routing.experts, turn, capacity, ahead.to(turn.device, non_blocking=True), routing.tokens.index
        )
        return with_dropped(routing, assignments), assignments, taken

    def _plan(self, counts: Tensor, device: torch.device) -> tuple[_Exchange, list[int]]:
        """Where rows go.

        Args:
            counts: (W, E) int64 on the host, the assignments of each process that each expert takes.
            device: where the rows are.

        Returns:
            The exchange, and the number of rows of each expert of this process.
        """
        size, rank = self.group.size, self.group.rank
        # From each process, to each process, to each of its experts.
        sent_to = counts.view(size, size, -1)
        blocks = sent_to.sum(2)
        # One row at least: the collective is the same for all processes, whatever their batches are.
        room = max(int(blocks.max()), 1)
        starts = room * torch.arange(size)
        mine = sent_to[:, rank]
        within = starts.unsqueeze(1) + mine.cumsum(1) - mine
        received = _places(within.t().reshape(-1), mine.t().reshape(-1))
        # The host has no reason to wait until a GPU has taken them.
        sent, received = (each.to(device, non_blocking=True) for each in (_places(starts, blocks[rank]), received))
        return _Exchange(room, sent, received), mine.sum(0).tolist()
