"""Inputs for MoE layers without a model around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskmoe_plugin.moe import (
    Experts,
    Gates,
    MergingTaskGates,
    MoELayer,
    Routing,
    SentenceRouter,
    StaticTaskGates,
    TaskGates,
    TokenRouter,
    Tokens,
    merged_routings,
    routings_of_units,
)

WIDTH, TASKS = 6, 3
ROUTINGS = ("task", "static", "merged", "sentence", "token")
BY_TASK = ("task", "static", "merged")


@dataclass(frozen=True)
class Batch:
    """A padding mask (B, T), and the task (B,) of each row."""

    padding: Tensor
    task: Tensor

    @property
    def tokens(self) -> Tokens:
        return Tokens.from_padding(self.padding)

    def row(self, index: int) -> Batch:
        """One row of it."""
        return Batch(self.padding[index : index + 1], self.task[index : index + 1])


def make_batch(padding: Tensor, seed: int = 0, tasks: int = TASKS) -> Batch:
    """The batch of a padding mask, with a random task for every row."""
    return Batch(padding, torch.randint(tasks, (padding.size(0),), generator=torch.Generator().manual_seed(seed)))


class RoutedMoE(nn.Module):
    """An MoE layer with what routes it: its own router, or gates of tasks that belong to a stack."""

    def __init__(self, moe: MoELayer, gates: TaskGates | StaticTaskGates | MergingTaskGates | None) -> None:
        super().__init__()
        self.moe = moe
        self.gates = gates

    def route(self, x: Tensor, batch: Batch) -> Routing:
        """The routing of activations (T, B, C)."""
        tokens = batch.tokens
        if self.gates is None:
            return self.moe.router(x.reshape(-1, x.size(-1)), tokens)
        return route_tasks(self.gates, batch.task[tokens.row], tokens)

    def forward(self, x: Tensor, batch: Batch) -> tuple[Tensor, Routing]:
        return self.moe(x, batch.tokens if self.gates is None else self.route(x, batch))


def route_tasks(gates: nn.Module, task: Tensor, tokens: Tokens, counts: list[int] | None = None) -> Routing:
    """The routing of one layer by gates of tasks, of which each token has one.

    Args:
        gates: of tasks.
        task: (N,) int64.
        tokens: the N tokens.
        counts: the number of assignments of each expert, or of tokens of each network, where the host knows it.
    """
    found = gates()
    tasks = found.probs.size(1)
    share = torch.full((tasks,), 1 / tasks, device=task.device)
    if isinstance(gates, MergingTaskGates):
        # As if all tasks were in every batch.
        (routing,) = merged_routings(found, torch.arange(tasks, device=task.device), task, tokens, share, counts)
    else:
        by_expert = None if counts is None else [[counts]]
        (routing,) = routings_of_units(found, task, tokens, share, by_expert, by_task=True)
    return routing


def make_gates(
    kind: str, experts: int, top_k: int, jitter: float = 0.0, tasks: int = TASKS, layers: int = 1
) -> nn.Module:
    """Gates of tasks: ``task`` for learned ones, ``static``, or ``merged``."""
    if kind == "merged":
        return MergingTaskGates(layers, tasks, experts, top_k)
    if kind == "task":
        return TaskGates(layers, tasks, WIDTH, experts, top_k, jitter)
    return StaticTaskGates(layers, tasks, experts, top_k)


def make_layer(
    kind: str,
    experts: int = 4,
    top_k: int = 2,
    seed: int = 0,
    jitter: float = 0.0,
    tasks: int = TASKS,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    ffn_width: int = 8,
    width: int = WIDTH,
    **capacity: float,
) -> RoutedMoE:
    """A layer with experts that differ from each other, biases included."""
    torch.manual_seed(seed)
    networks = Experts(experts, width, ffn_width, activation)
    gates = make_gates(kind, experts, top_k, jitter, tasks) if kind in BY_TASK else None
    router = None
    if gates is None:
        router = {"sentence": SentenceRouter, "token": TokenRouter}[kind](width, experts, top_k, jitter)
    return RoutedMoE(MoELayer(experts, networks, router, **capacity), gates)


def expert_output(experts: Experts, index: int, x: Tensor) -> Tensor:
    """What one expert computes of (…, C), by its definition."""
    hidden = experts.activation(x @ experts.fc1_weight[index].T + experts.fc1_bias[index])
    return hidden @ experts.fc2_weight[index].T + experts.fc2_bias[index]


def gates_of(probs: list[list[float]], k: int = 1) -> Gates:
    """Gates with the given probabilities, choosing the k largest."""
    table = torch.tensor(probs)
    weights, experts = table.topk(k)
    return Gates(table.log(), table, experts, weights)
