"""Expert parallel: the experts of a layer spread over processes, the tokens brought to them by all-to-all.

Assignments are sorted by expert, and a process holds neighbouring experts, so what one process sends to another is a
contiguous block. fairscale's all-to-all exchanges blocks of one size, hence each block is filled
up to the largest of them; no token is ever dropped for want of room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from fairscale.nn.moe.moe_layer import _AllToAll
from torch import Tensor
from torch import distributed as dist

from taskmoe_plugin.moe.dispatch import Dispatch, combine, expert_capacity, make_dispatch
from taskmoe_plugin.moe.placement import count_assignments, held_by, queue


def _places(starts: Tensor, lengths: Tensor) -> Tensor:
    """The numbers from each start on, as many as its length, one run after the other; all int64."""
    before = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) + (starts - before).repeat_interleave(lengths)


@dataclass(frozen=True)
class ExpertParallel:
    """The processes over which experts are spread.

    Its methods are collectives: all processes of the group call them, in the same order.
    """

    group: dist.ProcessGroup

    @property
    def size(self) -> int:
        """W, the number of processes."""
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """This process's place among them."""
        return dist.get_rank(self.group)

    def gather(self, counts: Tensor) -> Tensor:
        """(W, …) the tensors of all processes, which have the same shape, in the order of their ranks."""
        each = [torch.empty_like(counts) for _ in range(self.size)]
        dist.all_gather(each, counts.contiguous(), group=self.group)
        return torch.stack(each)

    def make_dispatch(
        self, experts: Tensor, weights: Tensor, num_experts: int, capacity_factor: float, counts: Tensor | None
    ) -> tuple[Dispatch, Tensor]:
        """Sort this process's assignments by expert, and learn how many every process has.

        With a capacity, the batches of all processes count as one, in the order of the processes.

        Args:
            experts: (N, K) int64, the experts of each of this process's tokens, best first.
            weights: (N, K) fp32.
            num_experts: E.
            capacity_factor: an expert takes at most ceil(factor · K · tokens / E) assignments; 0: dropless.
            counts: (W, E) int64, the assignments of each process to each expert; None where they are not known yet.

        Returns:
            The dispatch, and (W, E) int64, the assignments of each process that each expert takes.
        """
        if counts is not None:
            return make_dispatch(experts, weights, num_experts), counts
        choices = self.gather(count_assignments(experts, num_experts))
        if not capacity_factor:
            return make_dispatch(experts, weights, num_experts), choices.sum(1)
        k = experts.size(1)
        capacity = expert_capacity(capacity_factor, int(choices.sum()) // k, num_experts, k)
        taken, ahead = queue(choices, capacity, self.rank)
        return make_dispatch(experts, weights, num_experts, capacity, ahead), taken

    def run_experts(
        self, x: Tensor, dispatch: Dispatch, counts: Tensor, experts: Mapping[int, Callable[[Tensor], Tensor]]
    ) -> Tensor:
        """Weighted sum of the outputs of each token's experts, wherever these are; each expert is called once.

        Args:
            x: (M, C) activations, of which ``dispatch.token`` names rows.
            dispatch: this process's assignments.
            counts: (W, E) int64, the number of assignments of each process to each expert.
            experts: this process's experts by global index, mapping (a, C) to (a, C); a may be 0.

        Returns:
            (M, C) in the dtype of x; rows without an assignment are zero.
        """
        size, rank, width = self.size, self.rank, x.size(1)
        # From each process, to each process, to each of its experts.
        sent_to = counts.cpu().view(size, size, -1)
        blocks = sent_to.sum(2)
        room = int(blocks.max())
        if room == 0:
            return torch.zeros_like(x)
        starts = room * torch.arange(size)
        place = _places(starts, blocks[rank]).to(x.device)
        sent = x.new_zeros(size * room, width).index_copy(0, place, x.index_select(0, dispatch.token))
        received = _AllToAll.apply(self.group, sent)

        mine = sent_to[:, rank]
        within = starts.unsqueeze(1) + mine.cumsum(1) - mine
        by_expert = _places(within.t().reshape(-1), mine.t().reshape(-1)).to(x.device)
        slices = received.index_select(0, by_expert).split(mine.sum(0).tolist())
        held = held_by(rank, size, counts.size(1))
        # Experts without tokens run too: every process must have the same collectives to go back through.
        outputs = torch.cat([experts[index](part) for index, part in zip(held, slices)])
        returned = outputs.new_zeros(size * room, width).index_copy(0, by_expert, outputs)
        returned = _AllToAll.apply(self.group, returned)
        return combine(x, returned.index_select(0, place), dispatch)
