"""The processes over which experts are spread."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from taskmoe_plugin.parallel.placement import held_by


@dataclass(frozen=True)
class ExpertGroup:
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

    def held(self, experts: int) -> range:
        """Which of E experts this process holds."""
        return held_by(self.rank, self.size, experts)

    def gather(self, values: Tensor) -> Tensor:
        """(W, …) the tensors of all processes, which have the same shape, in the order of their ranks."""
        each = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(each, values.contiguous(), group=self.group)
        return torch.stack(each)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        total = value.clone()
        dist.all_reduce(total, group=self.group)
        return total
