"""Inputs for MoE layers without a model around them."""

from __future__ import annotations

import torch
from torch import Tensor

from taskmoe_plugin.moe import (
    Expert,
    Gates,
    MoELayer,
    RoutedBatch,
    Router,
    SentenceRouter,
    StaticTaskRouter,
    TaskRouter,
    TokenBatch,
    TokenRouter,
)

WIDTH, TASKS = 6, 3
ROUTERS = ("task", "static", "sentence", "token")


def make_router(kind: str, experts: int, top_k: int, jitter: float = 0.0, tasks: int = TASKS) -> Router:
    """A router of one of the kinds of ROUTERS, for inputs of width WIDTH."""
    if kind == "task":
        return TaskRouter(tasks, WIDTH, experts, top_k, jitter)
    if kind == "static":
        return StaticTaskRouter(tasks, experts, top_k)
    return {"sentence": SentenceRouter, "token": TokenRouter}[kind](WIDTH, experts, top_k, jitter)


def make_layer(kind: str, experts: int = 4, top_k: int = 2, seed: int = 0, **capacity: float) -> MoELayer:
    """A layer with experts that differ from each other, biases included."""
    torch.manual_seed(seed)
    networks = [Expert(WIDTH, 8, torch.relu) for _ in range(experts)]
    return MoELayer(make_router(kind, experts, top_k), networks, **capacity)


def make_batch(padding: Tensor, seed: int = 0, tasks: int = TASKS) -> RoutedBatch:
    """The batch of a padding mask (B, T), with a random task for every row."""
    task = torch.randint(tasks, (padding.size(0),), generator=torch.Generator().manual_seed(seed))
    return RoutedBatch(TokenBatch.from_padding(padding), task, task_share=torch.full((tasks,), 1 / tasks))


def gates_of(probs: list[list[float]], k: int = 1) -> Gates:
    """Gates with the given probabilities, choosing the k largest."""
    table = torch.tensor(probs)
    weights, experts = table.topk(k)
    return Gates(table.log(), table, experts, weights)
