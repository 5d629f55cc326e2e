"""Routing by task: which task a row has, and what all MoE layers of a stack do with a batch of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from taskmoe_plugin.models.task_table import TaskTable
from taskmoe_plugin.moe import (
    FixedTaskGates,
    GateRecord,
    Gates,
    MergingTaskGates,
    Routing,
    TaskGates,
    Tokens,
    merged_routings,
    routings_of_units,
)
from taskmoe_plugin.parallel.group import ExpertGroup


@dataclass(frozen=True)
class TaskBatch:
    """A batch as the gates of tasks see it.

    Attributes:
        padding: (B, T) bool, True at padding.
        task: (B,) int64, the task of each row.
        gates: the gates of all U tasks in all L layers, (L, U, …).
        share: (U,) fp32 summing to 1, each task's share of the training tokens.
        experts: (L, U, K), the experts of each task, on the host; -1 for a choice that is none.
        task_tokens: (W, U), the tokens of each task on each of W processes, on the host.
        rank: this process among them.
        expert_counts: the number of experts of each layer.
        merge: whether the experts of a task are merged to one network.
    """

    padding: Tensor
    task: Tensor
    gates: Gates
    share: Tensor
    experts: np.ndarray
    task_tokens: np.ndarray
    rank: int
    expert_counts: Sequence[int]
    merge: bool = False

    @property
    def only_task(self) -> int | None:
        """The task of all tokens of this process, if they share one."""
        return self._present[0] if len(self._present) == 1 else None

    @cached_property
    def _present(self) -> list[int]:
        return np.flatnonzero(self.task_tokens[self.rank]).tolist()

    def experts_of(self, task: int) -> list[list[int]]:
        """(L, K), the experts of a task in each layer; with a threshold, as many as it has."""
        return [[each for each in layer if each >= 0] for layer in self.experts[:, task].tolist()]

    def records(self) -> list[GateRecord]:
        """What losses and statistics need of each layer; no layer has to run for it."""
        return [GateRecord(gates=gates, share=self.share, by_task=True) for gates in self.gates.layers()]

    def routings(self) -> list[Routing]:
        """What each layer does with the batch."""
        own = self.task_tokens[self.rank]
        tokens = Tokens.from_padding(self.padding, int(own.sum()))
        unit = self.task.index_select(0, tokens.row)
        if self.merge:
            # Which tasks there are the host knows, but would have to wait to tell a GPU.
            present = unit.new_zeros(own.size).index_fill(0, unit, 1)
            units = present.argsort(descending=True, stable=True).narrow(0, 0, len(self._present))
            network = (present.cumsum(0) - 1).index_select(0, unit)
            counts = own[self._present].tolist()
            return merged_routings(self.gates, units, network, tokens, self.share, counts)
        return routings_of_units(self.gates, unit, tokens, self.share, self._counts, by_task=True)

    @cached_property
    def _counts(self) -> list[list[list[int]]]:
        """(L, W, E), the assignments that each process has for each expert of each layer."""
        anywhere = np.flatnonzero(self.task_tokens.any(axis=0))
        experts = self.experts[:, anywhere]
        layers, tasks, k = experts.shape
        # A choice that is none counts for an expert that is none, the first of each layer.
        places = max(self.expert_counts) + 1
        numbered = (experts + 1 + places * np.arange(layers).reshape(-1, 1, 1)).ravel()
        counts = np.empty((layers, len(self.task_tokens), places), dtype=np.int64)
        for process, tokens in enumerate(self.task_tokens[:, anywhere]):
            weights = np.broadcast_to(tokens.reshape(1, tasks, 1), (layers, tasks, k)).ravel()
            counts[:, process] = np.bincount(numbered, weights, layers * places).reshape(layers, places)
        return [layer[:, 1 : held + 1].tolist() for layer, held in zip(counts, self.expert_counts)]


class TaskRouter(nn.Module):
    """The tasks of a stack, and the gates of all its MoE layers.

    ``share``, (U,) fp32, is each task's share of the training tokens. It weighs the balance loss, is set at the start
    of every epoch and travels with the checkpoint; until then all tasks count the same.

    Args:
        table: the tasks.
        gates: of all layers.
        expert_counts: the number of experts of each layer.
        group: the processes over which the experts are spread; None: all are in this process.
        merge: whether the experts of a task are merged to one network, rather than their outputs combined.
    """

    lookup: Tensor
    share: Tensor

    def __init__(
        self,
        table: TaskTable,
        gates: TaskGates | MergingTaskGates | FixedTaskGates,
        expert_counts: Sequence[int],
        group: ExpertGroup | None = None,
        merge: bool = False,
    ) -> None:
        super().__init__()
        self.table = table
        self.gates = gates
        self.expert_counts = tuple(expert_counts)
        self.group = group
        self.merge = merge
        self.register_buffer("lookup", table.lookup, persistent=False)
        # Shares rather than counts: averaging checkpoints averages buffers too, and half precision rounds them.
        self.register_buffer("share", torch.full((len(table.names),), 1.0 / len(table.names), dtype=torch.float32))

    def set_training_tokens(self, pair_tokens: Mapping[tuple[int, int], int]) -> None:
        """Set the share of each task from the tokens of each (source language id, target language id)."""
        counts = torch.zeros(self.share.numel(), dtype=torch.int64)
        for (source, target), tokens in pair_tokens.items():
            counts[self.lookup[source, target]] += tokens
        self.share.copy_(counts / counts.sum())

    def forward(self, padding: Tensor, src_lang_id: Tensor | None, tgt_lang_id: Tensor | None) -> TaskBatch:
        """Look at a batch. The host waits for a GPU once, for all layers together; a collective where there is a group.

        Args:
            padding: (B, T) bool, True at padding.
            src_lang_id, tgt_lang_id: (B,) int64, the languages of each row.

        Raises:
            ValueError: there are no language ids, or a row's languages have no task.
        """
        if src_lang_id is None or tgt_lang_id is None:
            raise ValueError("task routing needs the languages of the rows: set --source-lang and --target-lang")
        task = self.lookup[src_lang_id, tgt_lang_id]
        tasks = self.share.numel()
        # The tokens of each task and, at the end, of rows without one, whose task is -1.
        lengths = padding.logical_not().sum(dim=1)
        counts = task.new_zeros(tasks + 1).index_add(0, task % (tasks + 1), lengths)
        each = counts.unsqueeze(0) if self.group is None else self.group.gather(counts)
        gates = self.gates()
        # The host is told of an expert that is none as -1.
        experts = gates.experts.masked_fill(gates.weights == 0, -1) if gates.sparse else gates.experts
        read = torch.cat([each.flatten(), experts.flatten()]).cpu().numpy()
        task_tokens = read[: each.numel()].reshape(-1, tasks + 1)
        rank = 0 if self.group is None else self.group.rank
        if task_tokens[rank, -1]:
            raise ValueError("a row's source and target language are a pair that the gates do not know")
        share = self.share.float()
        return TaskBatch(
            padding=padding,
            task=task,
            gates=gates,
            share=share / share.sum(),
            experts=read[each.numel() :].reshape(experts.shape),
            task_tokens=task_tokens[:, :-1],
            rank=rank,
            expert_counts=self.expert_counts,
            merge=self.merge,
        )
