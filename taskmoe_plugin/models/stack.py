"""What the MoE layers of one stack share: their configuration, and the batch that is passing through."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from fairseq import utils
from fairseq.distributed import utils as distributed_utils
from torch import Tensor, nn

from taskmoe_plugin.models.subnet_shape import SubnetShape
from taskmoe_plugin.models.task_table import TASK_ROUTINGS, TaskTable
from taskmoe_plugin.moe import (
    AbsentExpert,
    Expert,
    FixedTaskRouter,
    MoELayer,
    MoERecord,
    RoutedBatch,
    Router,
    SentenceRouter,
    StaticTaskRouter,
    TableRouter,
    TaskRouter,
    TokenBatch,
    TokenRouter,
    held_by,
    read_tables,
    seeded,
)
from taskmoe_plugin.moe.expert_parallel import ExpertParallel


def _task_table(args: Namespace, routing: str) -> TaskTable:
    langs, pairs = args.taskmoe_langs.split(","), args.taskmoe_lang_pairs.split(",")
    return TaskTable.build(routing, langs, pairs, json.loads(args.taskmoe_groups))


@dataclass(frozen=True)
class StackConfig:
    """The flags of one stack.

    Attributes:
        routing: one of ``ROUTINGS``.
        freq: every freq-th layer is an MoE layer; 0: none.
        experts, top_k, ffn_dim: number of experts, experts per token, hidden width of one expert.
        table: the tasks; None where no layer routes by task.
        shape: what extraction has left of the stack; None for a model that was not extracted.
        processes: over how many processes the experts are spread; 1: every process has all of them.
    """

    stack: str
    routing: str
    freq: int
    experts: int
    top_k: int
    width: int
    ffn_dim: int
    activation: str
    expert_dropout: float
    static: bool
    jitter: float
    capacity_factor: float
    eval_capacity_factor: float
    table: TaskTable | None
    shape: SubnetShape | None
    processes: int

    @classmethod
    def from_args(cls, args: Namespace, stack: str) -> StackConfig:
        """The configuration of the ``encoder`` or ``decoder`` stack of a checked model configuration.

        Args:
            args: a model's arguments after ``remember_languages``, or the ``TransformerConfig`` made from them.
            stack: ``encoder`` or ``decoder``.
        """
        routing, freq = getattr(args, f"{stack}_moe_routing"), getattr(args, f"{stack}_moe_freq")
        by_task = freq > 0 and routing in TASK_ROUTINGS
        token = routing == "token"
        expert_dropout = args.moe_expert_dropout
        if expert_dropout is None:
            expert_dropout = args.activation_dropout or getattr(args, "relu_dropout", 0.0) or 0.0
        return cls(
            stack=stack,
            routing=routing,
            freq=freq,
            experts=args.moe_expert_count,
            top_k=args.moe_top_k,
            width=getattr(args, f"{stack}_embed_dim"),
            ffn_dim=args.moe_expert_ffn_dim or getattr(args, f"{stack}_ffn_embed_dim"),
            activation=args.activation_fn,
            expert_dropout=expert_dropout,
            static=by_task and args.moe_task_gate == "static",
            jitter=args.moe_router_jitter,
            capacity_factor=args.moe_capacity_factor if token else 0.0,
            eval_capacity_factor=args.moe_eval_capacity_factor if token else 0.0,
            table=_task_table(args, routing) if by_task else None,
            shape=SubnetShape.of(args, stack),
            processes=getattr(args, "taskmoe_processes", 1),
        )

    @property
    def parallel(self) -> ExpertParallel | None:
        """The processes over which the experts are spread; None if every process has all of them."""
        return ExpertParallel(distributed_utils.get_data_parallel_group()) if self.processes > 1 else None

    def is_moe_layer(self, index: int) -> bool:
        """Whether layer ``index``, counted from 0, is an MoE layer."""
        return self.freq > 0 and (index + 1) % self.freq == 0

    def dense_layer(self, cfg: Any, index: int) -> Any:
        """The fairseq configuration of dense layer ``index``, which in a subnet has a width of its own."""
        if self.shape is None or not self.shape.ffn_dims:
            return cfg
        own = copy(cfg)
        setattr(own, self.stack, replace(getattr(cfg, self.stack), ffn_embed_dim=self.shape.ffn_dims[index]))
        return own

    def build_layer(self, index: int) -> MoELayer:
        """A freshly initialised MoE layer, layer ``index`` of the stack."""
        kept = self.shape.experts.get(index) if self.shape else None
        indices = range(self.experts) if kept is None else kept
        router = self.build_router(fixed=kept is not None)
        # A seed for each expert: processes that build different experts draw the same numbers for all other weights.
        seed = int(torch.randint(2**31, (), device="cpu"))
        parallel = self.parallel
        held = indices if parallel is None else held_by(parallel.rank, parallel.size, self.experts)
        experts = [self._build_expert(seed + each) if each in held else AbsentExpert() for each in indices]
        layer = MoELayer(router, experts, self.capacity_factor, self.eval_capacity_factor, indices, parallel)
        if parallel is not None:
            _mark_as_spread(layer.experts, parallel.size)
        return layer

    def tokens(self, padding: Tensor, filler: bool) -> TokenBatch:
        """The tokens of a batch with a padding mask (B, T).

        A filler batch, which fairseq gives a process that has run out of batches, counts for nothing. Where processes
        share experts, it must not reach the experts either: none of its tokens is one to them.
        """
        return TokenBatch.from_padding(torch.ones_like(padding) if filler and self.processes > 1 else padding)

    def _build_expert(self, seed: int) -> Expert:
        with seeded(seed):
            activation = utils.get_activation_fn(self.activation)
            return Expert(self.width, self.ffn_dim, activation, self.expert_dropout)

    def build_router(self, fixed: bool = False) -> Router:
        """A freshly initialised router; a fixed one gets its table from the checkpoint."""
        if self.table is not None:
            tasks = len(self.table.names)
            if fixed:
                return FixedTaskRouter(tasks, self.experts, self.top_k)
            if self.static:
                return StaticTaskRouter(tasks, self.experts, self.top_k)
            return TaskRouter(tasks, self.width, self.experts, self.top_k, self.jitter)
        router = SentenceRouter if self.routing == "sentence" else TokenRouter
        return router(self.width, self.experts, self.top_k, self.jitter)


def _mark_as_spread(experts: nn.ModuleDict, processes: int) -> None:
    """Have fairseq's legacy_ddp leave these experts' gradients alone, and make them what it makes of all others."""
    for parameter in experts.parameters():
        parameter.expert = True  # type: ignore[attr-defined]
        # It averages over processes. An expert's gradient is the sum already, for it saw the tokens of all of them.
        parameter.register_hook(lambda gradient: gradient / processes)


@dataclass
class StackState:
    """The batch on its way through a stack, and what its MoE layers recorded.

    fairseq's layer loops hand a layer nothing but activations; the stack and its layers share one of these instead.
    """

    layers: list[MoELayer] = field(default_factory=list)
    batch: RoutedBatch | None = None
    records: list[MoERecord] = field(default_factory=list)

    def task_routers(self) -> list[TableRouter]:
        """The routers of the layers that route by task."""
        return [layer.router for layer in self.layers if isinstance(layer.router, TableRouter)]

    @contextmanager
    def passing(self, batch: RoutedBatch) -> Iterator[list[MoERecord]]:
        """Within the context layers route ``batch``; yields the list of their records."""
        self.batch, self.records = batch, []
        try:
            yield self.records
        finally:
            self.batch, self.records = None, []


class TaskIndex(nn.Module):
    """The tasks of a stack as tensors: which task a row has, and how much of the training data each task is.

    ``share``, (number of tasks,) fp32, is each task's share of the training tokens. It weighs the balance loss, is set
    at the start of every epoch and travels with the checkpoint; until then all tasks count alike.
    """

    lookup: Tensor
    share: Tensor

    def __init__(self, table: TaskTable, parallel: ExpertParallel | None = None) -> None:
        super().__init__()
        self.table = table
        self.parallel = parallel
        self.register_buffer("lookup", table.lookup, persistent=False)
        # Shares rather than counts: averaging checkpoints averages buffers too, and half precision rounds them.
        self.register_buffer("share", torch.full((len(table.names),), 1.0 / len(table.names)))

    @classmethod
    def of(cls, config: StackConfig) -> TaskIndex | None:
        """The tasks of a stack; None if it does not route by task."""
        return cls(config.table, config.parallel) if config.table else None

    def set_training_tokens(self, pair_tokens: Mapping[tuple[int, int], int]) -> None:
        """Set the share of each task from the tokens of each (source language id, target language id)."""
        counts = torch.zeros(self.share.numel(), dtype=torch.int64)
        for (source, target), tokens in pair_tokens.items():
            counts[self.lookup[source, target]] += tokens
        self.share.copy_(counts / counts.sum())

    def route(
        self,
        tokens: TokenBatch,
        src_lang_id: Tensor | None,
        tgt_lang_id: Tensor | None,
        routers: Iterable[TableRouter] = (),
    ) -> RoutedBatch:
        """The batch as the stack's task routers see it.

        Args:
            tokens: the tokens of the batch.
            src_lang_id, tgt_lang_id: (B,) int64, the languages of each row.
            routers: those of the stack's layers, whose tables are read here so that no layer waits for a GPU.

        Raises:
            ValueError: there are no language ids, or a row's languages have no task.
        """
        if src_lang_id is None or tgt_lang_id is None:
            raise ValueError("task routing needs the languages of the rows: set --source-lang and --target-lang")
        task = self.lookup[src_lang_id, tgt_lang_id]
        # The tokens of each task and, at the end, of rows without one, whose task is -1.
        slots = len(self.table.names) + 1
        counts = task.new_zeros(slots).index_add(0, task[tokens.row] % slots, torch.ones_like(tokens.row))
        *task_counts, unknown = counts.tolist()
        if unknown:
            raise ValueError("a row's source and target language are a pair that the gates do not know")
        present = [index for index, count in enumerate(task_counts) if count]
        share = self.share.float()
        return RoutedBatch(
            tokens,
            task,
            only_task=present[0] if len(present) == 1 and tokens.index is None else None,
            task_share=share / share.sum(),
            task_tokens=self.parallel.gather(counts[:-1]) if self.parallel else None,
            tables=read_tables(routers),
            task_counts=task_counts,
        )
