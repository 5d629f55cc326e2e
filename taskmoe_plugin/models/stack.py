"""The flags of one stack, and its parts built by them."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from fairseq import utils
from fairseq.distributed import utils as distributed_utils

from taskmoe_plugin.models.low_rank import LowRank
from taskmoe_plugin.models.subnet_shape import Restriction, SubnetShape
from taskmoe_plugin.models.task_candidates import TaskCandidates
from taskmoe_plugin.models.task_router import TaskRouter
from taskmoe_plugin.models.task_table import TASK_ROUTINGS, TaskTable
from taskmoe_plugin.moe import (
    Candidates,
    Choice,
    Experts,
    FixedTaskGates,
    MergingTaskGates,
    MoELayer,
    SentenceRouter,
    StaticTaskGates,
    TaskGates,
    TokenRouter,
    Warmup,
)
from taskmoe_plugin.parallel.exchange import AllToAllDispatcher
from taskmoe_plugin.parallel.gradients import mark_as_spread
from taskmoe_plugin.parallel.group import ExpertGroup

# The language of a stack, by which its tokens choose among some of the experts, and have low-rank matrices.
LANGUAGE = {"encoder": "source", "decoder": "target"}
Language = TypeVar("Language")  # an id, or those of a batch


def _task_table(args: Namespace, by: str, restriction: Restriction | None) -> TaskTable | None:
    langs, pairs = args.taskmoe_langs.split(","), args.taskmoe_lang_pairs.split(",")
    if restriction is not None:
        return restriction.table(langs)
    return TaskTable.build(by, langs, pairs, json.loads(args.taskmoe_groups)) if by in TASK_ROUTINGS else None


def _warmup(args: Namespace) -> Warmup | None:
    updates = args.moe_task_gate_warmup_updates
    start = args.moe_task_gate_warmup_top_k or min(4 * args.moe_top_k, args.moe_expert_count)
    return Warmup(updates, start) if updates else None


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
        warmup: how the number of a task's experts falls in training; None: it does not.
        grad_scale, lr_scale: what gradients of experts, and their learning rate, are multiplied by.
        language_experts: M, among how many experts the tokens of a language choose; 0: all.
        langs: all languages, in the order of their ids.
        table: the tasks; None where no layer routes by task, or by token among the experts of a task.
        shape: what is left of the stack; None for a model that has all its experts.
        low_rank: rank of the language matrices; 0: there are none.
        low_rank_by: ``pair`` or ``language``, by what a row has its factors.
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
    lr_scale: float
    static: bool
    merge: bool
    choice: Choice
    warmup: Warmup | None
    jitter: float
    capacity_factor: float
    eval_capacity_factor: float
    random_priority: bool
    language_experts: int
    langs: tuple[str, ...]
    table: TaskTable | None
    shape: SubnetShape | None
    low_rank: int
    low_rank_by: str
    processes: int

    @classmethod
    def from_args(cls, args: Namespace, stack: str) -> StackConfig:
        """The configuration of the ``encoder`` or ``decoder`` stack of a checked model configuration.

        Args:
            args: a model's arguments after ``set_moe_defaults`` and ``remember_languages``, or the
                ``TransformerConfig`` made from them.
            stack: ``encoder`` or ``decoder``.
        """
        routing, freq = getattr(args, f"{stack}_moe_routing"), getattr(args, f"{stack}_moe_freq")
        routed, token = 0 < freq <= getattr(args, f"{stack}_layers"), routing == "token"
        by_task = routed and routing in TASK_ROUTINGS
        shape = SubnetShape.of(args, stack)
        restriction = shape.restriction if shape else None
        language_experts = args.moe_language_experts if routed and token else 0
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
            expert_bits=args.moe_expert_bits,
            grad_scale=args.moe_expert_grad_scale,
            lr_scale=args.moe_expert_lr_scale,
            static=(by_task or language_experts > 0) and args.moe_task_gate == "static",
            merge=by_task and args.moe_combine == "weights",
            choice=Choice(args.moe_route_scale, args.moe_threshold, args.moe_dense_training),
            warmup=_warmup(args) if by_task else None,
            jitter=args.moe_router_jitter,
            capacity_factor=args.moe_capacity_factor if token else 0.0,
            eval_capacity_factor=args.moe_eval_capacity_factor if token else 0.0,
            random_priority=args.moe_random_token_priority,
            language_experts=language_experts,
            langs=tuple(args.taskmoe_langs.split(",")),
            table=_task_table(args, LANGUAGE[stack] if language_experts else routing, restriction) if routed else None,
            shape=shape,
            low_rank=args.task_low_rank,
            low_rank_by=args.task_low_rank_by,
            processes=getattr(args, "taskmoe_processes", 1),
        )

    @cached_property
    def group(self) -> ExpertGroup | None:
        """The processes over which the experts are spread; None if every process has all of them."""
        return ExpertGroup(distributed_utils.get_data_parallel_group()) if self.processes > 1 else None

    @property
    def by_task(self) -> bool:
        """Whether it routes by task."""
        return self.table is not None and self.routing in TASK_ROUTINGS

    @property
    def task_experts(self) -> int:
        """How many experts a task has, all of which its tokens use, or among which they choose."""
        return self.language_experts or self.top_k

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
        if not self.by_task:
            kind = SentenceRouter if self.routing == "sentence" else TokenRouter
            router = kind(self.width, count, self.top_k, self.jitter, self.choice)
        activation = utils.get_activation_fn(self.activation)
        held = None if group is None else group.held(count)
        # The outputs of K experts that are independent at first, times scale / K each, have scale / √K of the size of
        # one. With scale = K that would be √K: divided by √scale, it is that of a dense network.
        gain = self.choice.scale**-0.5
        shape = count, self.width, self.ffn_dim
        experts = Experts(*shape, activation, self.expert_dropout, held, gain, self.expert_bits)
        if self.grad_scale != 1:
            experts.scale_gradients(self.grad_scale)
        if self.lr_scale != 1:
            for parameter in experts.parameters():
                # fairseq's name for it; see tasks/learning_rates.py.
                overrides = {"optimizer": {"lr_scale": self.lr_scale}}
                parameter.optim_overrides = overrides  # type: ignore[attr-defined]
        dispatcher = None
        if group is not None:
            mark_as_spread(experts, group.size)
            dispatcher = AllToAllDispatcher(group)
        capacity = self.capacity_factor, self.eval_capacity_factor
        return MoELayer(count, experts, router, *capacity, dispatcher, self.random_priority)

    @property
    def restriction(self) -> Restriction | None:
        """Which experts the tokens of each language are left with where the model was pruned; None: it was not."""
        return self.shape.restriction if self.shape else None

    def build_low_rank(self) -> LowRank | None:
        """What gives the stack's layers low-rank language matrices; None if they have none."""
        return LowRank(self.low_rank, len(self.langs), int(self.stack == "decoder")) if self.low_rank else None

    def low_rank_factors(self, source: Language, target: Language) -> tuple[Language, Language]:
        """The languages whose factors V and F a translation from ``source`` to ``target`` has in this stack."""
        if self.low_rank_by == "pair":
            return source, target
        own = source if LANGUAGE[self.stack] == "source" else target
        return own, own

    def build_gates(self) -> TaskGates | MergingTaskGates | FixedTaskGates:
        """Freshly initialised gates of tasks; those of a subnet get their table from the checkpoint."""
        assert self.table is not None
        if self.restriction is not None:
            return self.restriction.gates(self.moe_layers, self.experts)
        layers, tasks, k = len(self.moe_layers), len(self.table.names), self.task_experts
        # Where tokens choose among a task's experts, it is their choice that the flags are about.
        choice, ahead = (self.choice, TaskGates.HEAD_START) if self.by_task else (Choice(), Candidates.HEAD_START)
        if self.shape is not None and self.shape.experts:
            return FixedTaskGates(layers, tasks, self.experts, k, sparse=choice.threshold > 0)
        if self.merge:
            return MergingTaskGates(layers, tasks, self.experts, k)
        if self.static:
            return StaticTaskGates(layers, tasks, self.experts, k, choice.scale)
        # Noise of its own for each stack.
        seed = int(self.stack == "decoder")
        return TaskGates(layers, tasks, self.width, self.experts, k, self.jitter, seed, choice, ahead, self.warmup)

    def build_tasks(self) -> TaskRouter | TaskCandidates | None:
        """The tasks of the stack with freshly initialised gates; None if it has none."""
        if self.table is None:
            return None
        counts = [self.expert_count(index) for index in self.moe_layers]
        gates = self.build_gates()
        if self.by_task:
            return TaskRouter(self.table, gates, counts, self.group, self.merge)
        return TaskCandidates(self.table, gates, counts)
