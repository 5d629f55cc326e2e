"""Routers: what scores the experts for a task, a sentence or a token.

A router gives each routing *unit* its experts and their weights. The unit is a task (the router holds a table of
them, independent of the batch), a sentence, or a token; dispatch, losses and statistics treat them alike.
All gates are computed in fp32 under any precision of the model (Switch Transformer, section 2.4).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskmoe_plugin.moe.batch import RoutedBatch


@dataclass(frozen=True)
class Gates:
    """The choice of experts for U units.

    Attributes:
        logits: (U, E) fp32; None where the choice is fixed rather than learned.
        probs: (U, E) fp32, their softmax.
        experts: (U, K) int64, the chosen experts, best first.
        weights: (U, K) fp32, what each chosen expert's output is multiplied by.
        listed: ``experts`` on the host, where they were read for all layers at once.
    """

    logits: Tensor | None
    probs: Tensor
    experts: Tensor
    weights: Tensor
    listed: list[list[int]] | None = None


def top_k_gates(logits: Tensor, k: int) -> Gates:
    """Choose the k best experts of each unit.

    For k > 1 the softmax probabilities of the chosen experts are renormalised to sum to 1 (GShard, algorithm 1).
    For k = 1 the probability itself is the weight (Switch Transformer, equation 2): renormalised it would be the
    constant 1, and the translation loss would have no gradient with respect to the gate.

    Args:
        logits: (U, E) fp32.
        k: experts per unit, 1 <= k <= E.
    """
    probs = logits.softmax(dim=-1)
    weights, experts = probs.topk(k, dim=-1)
    if k > 1:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return Gates(logits, probs, experts, weights)


class Router(nn.Module, ABC):
    """Base of all routers: how many experts there are and how many a unit uses."""

    def __init__(self, experts: int, top_k: int) -> None:
        super().__init__()
        if not 1 <= top_k <= experts:
            raise ValueError(f"top-k must be between 1 and the number of experts: k = {top_k}, experts = {experts}")
        self.num_experts = experts
        self.top_k = top_k

    @abstractmethod
    def gates(self, x: Tensor, batch: RoutedBatch) -> Gates:
        """Gates of all units, for flattened activations ``x`` (T·B, C)."""

    @abstractmethod
    def unit(self, batch: RoutedBatch) -> Tensor | None:
        """(N,) int64, the unit of each token; None when every token is a unit of its own, in order."""

    def share(self, batch: RoutedBatch, units: int) -> Tensor:
        """(U,) fp32 summing to 1, the share of tokens that each unit stands for."""
        tokens = batch.tokens.row.numel()
        unit = self.unit(batch)
        if unit is None:
            return torch.full((units,), 1.0 / max(tokens, 1), device=batch.tokens.row.device)
        return _count(unit, units) / max(tokens, 1)


def _count(unit: Tensor, units: int) -> Tensor:
    # (U,) fp32, how often each unit occurs; torch.bincount waits for a GPU to learn the largest.
    return torch.zeros(units, device=unit.device).index_add(0, unit, torch.ones(unit.shape, device=unit.device))


class LearnedGate(nn.Module):
    """A linear gate without bias: logits (U, E) = scale · inputs (U, M) · weight (M, E), in fp32.

    Args:
        width: M, the width of its input.
        experts: E.
        std: standard deviation of the initial weights.
        jitter: in training the input is multiplied by uniform noise from [1 - jitter, 1 + jitter]
            (Switch Transformer, section 2.2 and table 11).
        scale: a constant factor.
    """

    def __init__(self, width: int, experts: int, std: float, jitter: float, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(experts, width))
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)
        self.jitter = jitter

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if self.training and self.jitter > 0:
                x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
            return F.linear(x, self.weight.float()) * self.scale


def _input_gate(width: int, experts: int, jitter: float) -> LearnedGate:
    # Layer-normalised inputs have variance 1, so this keeps the first logits near 0: Switch's scale of 0.1.
    return LearnedGate(width, experts, std=(0.1 / width) ** 0.5, jitter=jitter)


class TokenRouter(Router):
    """Each token chooses its experts by its own activation (Shazeer et al. 2017; GShard; Switch Transformer)."""

    def __init__(self, width: int, experts: int, top_k: int, jitter: float = 0.0) -> None:
        super().__init__(experts, top_k)
        self.gate = _input_gate(width, experts, jitter)

    def gates(self, x: Tensor, batch: RoutedBatch) -> Gates:
        return top_k_gates(self.gate(batch.tokens.take(x)), self.top_k)

    def unit(self, batch: RoutedBatch) -> None:
        return None


class SentenceRouter(Router):
    """Each sentence chooses its experts by the mean of its tokens (TaskMoE, section 3.1)."""

    def __init__(self, width: int, experts: int, top_k: int, jitter: float = 0.0) -> None:
        super().__init__(experts, top_k)
        self.gate = _input_gate(width, experts, jitter)

    def gates(self, x: Tensor, batch: RoutedBatch) -> Gates:
        sentence = batch.sentence
        if sentence is None:
            tokens, row = batch.tokens.take(x).float(), batch.tokens.row
            total = tokens.new_zeros(batch.tokens.rows, x.size(1)).index_add(0, row, tokens)
            sentence = total / _count(row, batch.tokens.rows).clamp(min=1).unsqueeze(1)
        return top_k_gates(self.gate(sentence), self.top_k)

    def unit(self, batch: RoutedBatch) -> Tensor:
        return batch.tokens.row


class TableRouter(Router):
    """Base of the routers that hold a table of tasks: their gates do not depend on the batch."""

    num_tasks: int

    @abstractmethod
    def table(self) -> Gates:
        """Gates of all tasks, U = number of tasks."""

    def gates(self, x: Tensor, batch: RoutedBatch) -> Gates:
        return batch.tables[self] if self in batch.tables else self.table()

    def unit(self, batch: RoutedBatch) -> Tensor:
        if batch.task is None:
            raise ValueError("a task router needs the task of each row")
        return batch.task[batch.tokens.row]

    def share(self, batch: RoutedBatch, units: int) -> Tensor:
        return super().share(batch, units) if batch.task_share is None else batch.task_share


def read_tables(routers: Iterable[TableRouter]) -> dict[TableRouter, Gates]:
    """The gates of several routers of the same tasks, their experts read to the host together: a GPU waits once."""
    tables = {router: router.table() for router in routers}
    if not tables:
        return {}
    listed = torch.stack([gates.experts for gates in tables.values()]).tolist()
    return {router: replace(gates, listed=experts) for (router, gates), experts in zip(tables.items(), listed)}


def deal(tasks: int, experts: int, top_k: int) -> Tensor:
    """(tasks, K) int64: experts dealt to tasks in turn, one from each of K blocks of consecutive experts.

    A task's experts are far apart: they belong to different processes where experts are spread, and a task with many
    tokens keeps all of these busy. Whenever it has been dealt, block j moves on by j places, so that (for K > 1, and E
    divisible by K) no two of the first (E/K)² tasks share all their experts.
    """
    edges = torch.arange(top_k + 1) * experts // top_k
    size, task, block = edges.diff(), torch.arange(tasks).unsqueeze(1), torch.arange(top_k)
    return edges[:-1] + (task + block * (task // size)) % size


class TaskRouter(TableRouter):
    """Each task chooses its experts: the gate scores a learned embedding of the task (TaskMoE, section 3.1).

    Every task begins with the experts that are dealt to it, ``HEAD_START`` ahead of the others and of nearly equal
    weights. From there the gate learns slowly: its scores are divided by M, the width of the embedding, for Adam moves
    each weight by about the learning rate, and would move their sum by M times that. Gates that move faster settle on
    one expert of the k, or exchange experts before these have learnt anything.
    """

    HEAD_START = 2.0
    head_start: Tensor

    def __init__(self, tasks: int, width: int, experts: int, top_k: int, jitter: float = 0.0) -> None:
        super().__init__(experts, top_k)
        self.num_tasks = tasks
        self.task_embedding = nn.Parameter(torch.randn(tasks, width))
        self.gate = LearnedGate(width, experts, std=1.0, jitter=jitter, scale=1 / width)
        dealt = deal(tasks, experts, top_k)
        self.register_buffer("head_start", torch.zeros(tasks, experts).scatter(1, dealt, self.HEAD_START))

    def table(self) -> Gates:
        return top_k_gates(self.gate(self.task_embedding) + self.head_start.float(), self.top_k)


class FixedTaskRouter(TableRouter):
    """Each task has given experts with given weights, loaded with the model: a gate that is done learning.

    Args:
        tasks: number of tasks.
        experts: E, number of experts there once were to choose from; the router may name only some of them.
        top_k: experts per task.
    """

    experts: Tensor
    weights: Tensor

    def __init__(self, tasks: int, experts: int, top_k: int) -> None:
        super().__init__(experts, top_k)
        self.num_tasks = tasks
        self.register_buffer("experts", torch.zeros(tasks, top_k, dtype=torch.int64))
        self.register_buffer("weights", torch.zeros(tasks, top_k))

    def table(self) -> Gates:
        weights = self.weights.float()
        probs = weights.new_zeros(self.num_tasks, self.num_experts).scatter(1, self.experts, weights)
        return Gates(None, probs, self.experts, weights)


class StaticTaskRouter(FixedTaskRouter):
    """Each task has the experts that are dealt to it, with equal weights: the Static MoE of TaskMoE, section 5.1."""

    def __init__(self, tasks: int, experts: int, top_k: int) -> None:
        super().__init__(tasks, experts, top_k)
        self.experts.copy_(deal(tasks, experts, top_k))
        self.weights.fill_(1 / top_k)
