"""The flags of one stack, and its parts built by them."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fairseq import utils
from fairseq.distributed import utils as distributed_utils
from torch import Tensor

from taskmoe_plugin.models.low_rank import LowRank
from taskmoe_plugin.models.restricted_rows import RestrictedRows, allowed_experts
from taskmoe_plugin.models.subnet_shape import Restriction, SubnetShape
from taskmoe_plugin.models.task_router import TaskRouter
from taskmoe_plugin.models.task_table import TASK_ROUTINGS, TaskTable
from taskmoe_plugin.moe import (
    Choice,
    Experts,
    FixedTaskGates,
    MergingTaskGates,
    MoELayer,
    SentenceRouter,
    StaticTaskGates,
    TaskGates,
    TokenRouter,
)
from taskmoe_plugin.parallel.exchange import AllToAllDispatcher
from taskmoe_plugin.parallel.gradients import mark_as_spread
from taskmoe_plugin.parallel.group import ExpertGroup


def _task_table(args: Namespace, routing: str) -> TaskTable:
    langs, pairs = args.taskmoe_langs.split(","), args.taskmoe_lang_pairs.split(",")
    return TaskTable.build(routing, langs, pairs, json.loads(args.taskmoe_groups))


@dataclass(frozen=True)
class StackConfig:
    """The flags of one stack.

    Attributes:
        routing: one of ``ROUTINGS``.
        freq: every freq-th layer is an MoE layer; 0: none.
        layers: the number of layers, dense ones included.
        experts, top_k, ffn_dim: number of experts, experts per token, hidden width of one expert.
        merge: whether a task's experts are merged to one network.
        choice: how tasks, sentences or tokens choose them.
        grad_scale: what gradients of experts are multiplied by.
        langs: all languages, in the order of their ids.
        table: the tasks; None where no layer routes by task.
        shape: what is left of the stack; None for a model that has all its experts.
        low_rank: rank of the language matrices; 0: there are none.
        processes: over how many processes the experts are spread; 1: every process has all of them.
    """

    stack: str
    routing: str
    freq: int
    layers: int
    experts: int
    top_k: int
    width: int
    ffn_dim: int
    activation: str
    expert_dropout: float
    expert_bits: int | None
    grad_scale: float
    static: bool
    merge: bool
    choice: Choice
    jitter: float
    capacity_factor: float
    eval_capacity_factor: float
    random_priority: bool
    langs: tuple[str, ...]
    table: TaskTable | None
    shape: SubnetShape | None
    low_rank: int
    processes: int

    @classmethod
    def from_args(cls, args: Namespace, stack: str) -> StackConfig:
        """The configuration of the ``encoder`` or ``decoder`` stack of a checked model configuration.

        Args:
            args: a model's arguments after ``remember_languages``, or the ``TransformerConfig`` made from them.
            stack: ``encoder`` or ``decoder``.
        """
        routing, freq = getattr(args, f"{stack}_moe_routing"), getattr(args, f"{stack}_moe_freq")
        by_task = 0 < freq <= getattr(args, f"{stack}_layers") and routing in TASK_ROUTINGS
        token = routing == "token"
        expert_dropout = args.moe_expert_dropout
        if expert_dropout is None:
            expert_dropout = args.activation_dropout or getattr(args, "relu_dropout", 0.0) or 0.0
        return cls(
            stack=stack,
            routing=routing,
            freq=freq,
            layers=getattr(args, f"{stack}_layers"),
            experts=args.moe_expert_count,
            top_k=args.moe_top_k,
            width=getattr(args, f"{stack}_embed_dim"),
            ffn_dim=args.moe_expert_ffn_dim or getattr(args, f"{stack}_ffn_embed_dim"),
            activation=args.activation_fn,
            expert_dropout=expert_dropout,
            expert_bits=getattr(args, "moe_expert_bits", None),
            grad_scale=getattr(args, "moe_expert_grad_scale", 1.0),
            static=by_task and args.moe_task_gate == "static",
            merge=by_task and getattr(args, "moe_combine", "outputs") == "weights",
            choice=Choice(
                getattr(args, "moe_route_scale", 1.0),
                getattr(args, "moe_threshold", 0.0),
                getattr(args, "moe_dense_training", False),
            ),
            jitter=args.moe_router_jitter,
            capacity_factor=args.moe_capacity_factor if token else 0.0,
            eval_capacity_factor=args.moe_eval_capacity_factor if token else 0.0,
            random_priority=getattr(args, "moe_random_token_priority", False),
            langs=tuple(args.taskmoe_langs.split(",")),
            table=_task_table(args, routing) if by_task else None,
            shape=SubnetShape.of(args, stack),
            # Checkpoints of models without it need not know the flag.
            low_rank=getattr(args, "task_low_rank", 0),
            processes=getattr(args, "taskmoe_processes", 1),
        )

    @cached_property
    def group(self) -> ExpertGroup | None:
        """The processes over which the experts are spread; None if every process has all of them."""
        return ExpertGroup(distributed_utils.get_data_parallel_group()) if self.processes > 1 else None

    @property
    def moe_layers(self) -> list[int]:
        """The MoE layers, by number, counted from 0."""
        return [index for index in range(self.layers) if self.is_moe_layer(index)]

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

    def expert_count(self, index: int) -> int:
        """The number of experts of MoE layer ``index``."""
        return len(self.held_experts(index))

    def held_experts(self, index: int) -> Sequence[int]:
        """Global indices of the experts of MoE layer ``index``, of which a subnet and a pruned model keep some."""
        return self.shape.experts.get(index, range(self.experts)) if self.shape else range(self.experts)

    def build_layer(self, index: int) -> MoELayer:
        """A freshly initialised MoE layer, layer ``index`` of the stack."""
        count, group = self.expert_count(index), self.group
        router: SentenceRouter | TokenRouter | None = None
        if self.table is None:
            gate = self.width, count, self.top_k, self.jitter, self.choice
            router = SentenceRouter(*gate) if self.routing == "sentence" else TokenRouter(*gate, self._allowed(index))
        activation = utils.get_activation_fn(self.activation)
        held = None if group is None else group.held(count)
        # The outputs of K experts that are independent at first, times scale / K each, have scale / √K of the size of
        # one. With scale = K that would be √K: divided by √scale, it is that of a dense network.
        gain = self.choice.scale**-0.5
        shape = count, self.width, self.ffn_dim
        experts = Experts(*shape, activation, self.expert_dropout, held, gain, self.expert_bits)
        if self.grad_scale != 1:
            experts.scale_gradients(self.grad_scale)
        dispatcher = None
        if group is not None:
            mark_as_spread(experts, group.size)
            dispatcher = AllToAllDispatcher(group)
        capacity = self.capacity_factor, self.eval_capacity_factor
        return MoELayer(count, experts, router, *capacity, dispatcher, self.random_priority)

    def _allowed(self, index: int) -> Tensor | None:
        restriction = self.restriction
        return None if restriction is None else allowed_experts(restriction.allowed[index], self.expert_count(index))

    @property
    def restriction(self) -> Restriction | None:
        """Which experts the tokens of each language may choose; None: any."""
        return self.shape.restriction if self.shape else None

    def build_restricted(self) -> RestrictedRows | None:
        """Tells the languages that are restricted; None if none is."""
        return None if self.restriction is None else RestrictedRows(self.restriction.table(self.langs))

    def build_low_rank(self) -> LowRank | None:
        """What gives the stack's layers low-rank language matrices; None if they have none."""
        return LowRank(self.low_rank, len(self.langs), int(self.stack == "decoder")) if self.low_rank else None

    def build_gates(self) -> TaskGates | MergingTaskGates | FixedTaskGates:
        """Freshly initialised gates of tasks; those of a subnet get their table from the checkpoint."""
        assert self.table is not None
        layers, tasks = len(self.moe_layers), len(self.table.names)
        if self.shape is not None and self.shape.experts:
            return FixedTaskGates(layers, tasks, self.experts, self.top_k, sparse=self.choice.threshold > 0)
        if self.merge:
            return MergingTaskGates(layers, tasks, self.experts, self.top_k)
        if self.static:
            return StaticTaskGates(layers, tasks, self.experts, self.top_k, self.choice.scale)
        # Noise of its own for each stack.
        seed = int(self.stack == "decoder")
        sizes = layers, tasks, self.width, self.experts, self.top_k
        return TaskGates(*sizes, self.jitter, seed, self.choice)

    def build_tasks(self) -> TaskRouter | None:
        """The tasks of the stack with freshly initialised gates; None if it does not route by task."""
        if self.table is None:
            return None
        counts = [self.expert_count(index) for index in self.moe_layers]
        return TaskRouter(self.table, self.build_gates(), counts, self.group, self.merge)
