"""Which experts the tasks use: for people to look at, not for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmoe_plugin.moe.gates import Gates
from taskmoe_plugin.moe.layer import MoELayer
from taskmoe_plugin.moe.routing import Routing
from taskmoe_plugin.moe.tokens import Tokens


@dataclass(frozen=True)
class Usage:
    """How the tasks use the experts of one MoE layer.

    Attributes:
        weight: (tasks, E) fp32, the mean over a task's tokens of the weight that each expert has, 0 where it is not
            chosen. Rows sum to what a token's weights sum to: 1 times the route scale, or the probabilities that a
            token-routed top-1 and a threshold leave as they are.
        load: (tasks, E) fp32, the share of a task's assignments that each expert gets, before any are dropped (which
            have no weight); of experts that are merged, their share in its network. Rows sum to 1, to 0 for a task
            without tokens.
        share: (tasks,) fp32 summing to 1, each task's share of the tokens.
    """

    weight: Tensor
    load: Tensor
    share: Tensor

    @classmethod
    def of_table(cls, gates: Gates, share: Tensor, merged: bool = False) -> Usage:
        """The usage of a layer whose gates are a table of tasks.

        Args:
            gates: gates of all tasks.
            share: (tasks,), each task's share of the training tokens.
            merged: whether a task's experts are merged to one network.
        """
        share = share / share.sum()
        if merged:
            return cls(gates.shares, gates.shares, share)
        tasks, num_experts = gates.probs.shape
        task = torch.arange(tasks, device=share.device)
        sums = count_usage(gates.experts, gates.weights, task, tasks, num_experts, gates.sparse)
        return cls(*_means(sums, gates.experts.size(1)), share)

    @classmethod
    def of_counts(cls, sums: Tensor, top_k: int) -> Usage:
        """The usage that ``count_usage`` counted, perhaps over many batches of a layer with K = ``top_k``."""
        assignments = sums[..., 1].sum(dim=1)
        return cls(*_means(sums, top_k), assignments / assignments.sum().clamp(min=1))

    @property
    def expert_load(self) -> Tensor:
        """(E,) fp32 summing to 1, the share of all assignments that each expert gets."""
        return self.share @ self.load


def _means(sums: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    weight, count = sums.unbind(dim=-1)
    assignments = count.sum(dim=1, keepdim=True).clamp(min=1)
    return weight / (assignments / top_k), count / assignments


def count_usage(
    experts: Tensor, weights: Tensor, task: Tensor, tasks: int, num_experts: int, sparse: bool = False
) -> Tensor:
    """(tasks, E, 2) fp32: for each task and expert the sum of gate weights and the number of assignments.

    Args:
        experts: (N, K) int64, the experts of each token.
        weights: (N, K) fp32, their weights.
        task: (N,) int64, the task of each token.
        tasks: number of tasks.
        num_experts: E.
        sparse: whether choices of weight 0 are none; the others of a token then count for K together.
    """
    place = (task.unsqueeze(1) * num_experts + experts).flatten()
    count = torch.ones_like(weights)
    if sparse:
        chosen = (weights > 0).to(weights.dtype)
        count = chosen * (weights.size(1) / chosen.sum(dim=1, keepdim=True))
    each = torch.stack([weights.flatten(), count.flatten()], dim=1)
    return each.new_zeros(tasks * num_experts, 2).index_add(0, place, each).view(tasks, num_experts, 2)


@contextmanager
def counted_usage(layers: Sequence[MoELayer], task: Tensor, tasks: int) -> Iterator[list[Tensor]]:
    """Within the context, sums for each layer what ``count_usage`` gives of every pass through it.

    Args:
        layers: the layers, perhaps of several stacks.
        task: (B,) int64, the task of each row of the batches that pass.
        tasks: number of tasks. They need not be those that the layers route by, if they route by any.
    """
    sums = [torch.zeros(tasks, layer.num_experts, 2, dtype=torch.float32, device=task.device) for layer in layers]
    with ExitStack() as stack:
        for layer, total in zip(layers, sums):
            stack.callback(layer.register_forward_hook(_Count(total, task)).remove)
        yield sums


@dataclass(frozen=True)
class _Count:
    """A forward hook that adds a pass through a layer to a sum."""

    total: Tensor
    task: Tensor

    def __call__(self, layer: MoELayer, args: tuple[Tensor, Routing | Tokens], output: tuple[Tensor, Routing]) -> None:
        routing = output[1]
        if routing.merging is not None:
            raise ValueError("tokens of merged experts choose none; use Usage.of_table(…, merged=True)")
        tasks, num_experts, _ = self.total.shape
        task = self.task[routing.tokens.row]
        experts, weights = routing.experts, routing.weights
        sparse = routing.gates.sparse
        self.total.add_(count_usage(experts, weights.detach(), task, tasks, num_experts, sparse))
