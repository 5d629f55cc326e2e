"""What becomes of each stack."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from taskmoe_plugin.errors import TaskMoEError, listed
from taskmoe_plugin.models.config import STACKS
from taskmoe_plugin.models.stack import StackConfig
from taskmoe_plugin.models.subnet_shape import SubnetShape
from taskmoe_plugin.models.task_table import TaskTable, split_pair
from taskmoe_plugin.moe import Gates
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.gates import task_tables


class StackForm(Enum):
    """What becomes of a stack."""

    DENSE = "dense"  # it has no MoE layer
    FOLDED = "folded"  # the experts of the one task become one feed-forward network
    ROUTED = "routed"  # the experts of several tasks are kept, and which task uses which; if merged, one for each task
    WHOLE = "whole"  # it routes by sentence or token, and keeps all experts
    PRUNED = "pruned"  # it routes by token among some experts of each task, and keeps those of the pairs


@dataclass(frozen=True)
class StackPlan:
    """What becomes of one stack.

    Attributes:
        config: the stack of the full model.
        form: see ``StackForm``.
        layers: number of layers.
        moe_layers: indices of its MoE layers.
        pairs: the pairs that the subnet translates.
        gates: for each MoE layer of a stack that has tasks, the gates of the kept ones, U = len(tasks).
        tasks: names of the kept tasks.
        task: the place in ``tasks`` of each pair's task.
    """

    config: StackConfig
    form: StackForm
    layers: int
    moe_layers: list[int]
    pairs: tuple[str, ...]
    gates: dict[int, tuple[Tensor, Tensor]]
    tasks: tuple[str, ...]
    task: dict[str, int]

    def kept_experts(self, layer: int) -> tuple[int, ...]:
        """The experts that an MoE layer keeps, by their places in the full model, ascending; merged: the tasks."""
        if self.form is StackForm.WHOLE:
            return tuple(range(self.config.expert_count(layer)))
        if self.config.merge:
            return tuple(range(len(self.tasks)))
        return tuple(sorted(set(self.gates[layer][0].flatten().tolist())))

    def shape(self, ffn_dims: Sequence[int]) -> SubnetShape:
        """The shape of the stack in the subnet.

        Args:
            ffn_dims: the width of the feed-forward network of each layer.
        """
        routed = [] if self.form is StackForm.FOLDED else self.moe_layers
        experts = {layer: self._named_experts(layer) for layer in routed}
        restriction = self.config.restriction
        if restriction is not None:
            restriction = restriction.without(self.pairs, self.config.langs)
        return SubnetShape(tuple(ffn_dims), experts, restriction)

    def _named_experts(self, layer: int) -> tuple[int, ...]:
        kept = self.kept_experts(layer)
        if self.config.merge:
            return kept
        before = self.config.held_experts(layer)
        return tuple(before[place] for place in kept)


@dataclass(frozen=True)
class Plan:
    """What becomes of the model.

    Attributes:
        pairs: the pairs that the subnet translates.
        stacks: the two stacks, by name.
        languages: for each stack those whose factors V and F of low-rank matrices are folded, counted from 0; None if
            there are no matrices, or several pairs keep them.
    """

    pairs: tuple[str, ...]
    stacks: dict[str, StackPlan]
    languages: dict[str, tuple[int, int]] | None

    @property
    def dense(self) -> bool:
        """Whether no MoE layer and no low-rank matrix is left."""
        return not self.keeps_matrices and all(
            stack.form in (StackForm.DENSE, StackForm.FOLDED) for stack in self.stacks.values()
        )

    @property
    def keeps_matrices(self) -> bool:
        """Whether low-rank matrices are left, those of all languages."""
        return self.languages is None and any(stack.config.low_rank for stack in self.stacks.values())

    @property
    def form(self) -> str:
        """What to call the subnet: folded, union, pruned, or partial with the stacks that keep all their experts."""
        whole = [name for name, stack in self.stacks.items() if stack.form is StackForm.WHOLE]
        union = "union" if len(self.pairs) > 1 and not self.dense else ""
        pruned = "pruned" if any(stack.form is StackForm.PRUNED for stack in self.stacks.values()) else ""
        partial = f"partial, {' and '.join(whole)} whole" if whole else ""
        return " ".join(filter(None, (union, pruned, partial))) or "folded"


class Planner:
    """Plans subnets of a model, whose flags and gates are read once.

    Args:
        checkpoint: the model.

    Raises:
        TaskMoEError: its gates are damaged.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._langs = {lang: number for number, lang in enumerate(checkpoint.langs, 1)}
        self._trained = [frozenset(side) for side in zip(*map(split_pair, checkpoint.pairs))]
        self._configs = {stack: StackConfig.from_args(checkpoint.args, stack) for stack in STACKS}
        self._gates = {
            stack: task_tables(checkpoint.tensors, config)
            for stack, config in self._configs.items()
            if config.table is not None
        }

    def plan(self, pairs: Sequence[str]) -> Plan:
        """Plan the subnet of some pairs.

        Raises:
            TaskMoEError: the model does not translate a pair, or has nothing that could be left out.
        """
        checkpoint = self._checkpoint
        bits = checkpoint.args.moe_expert_bits
        if bits is not None:
            raise TaskMoEError(
                f"{checkpoint.name}: was trained with --moe-expert-bits {bits}, and its weights are not rounded; "
                f"run taskmoe convert quantize --bits {bits}, and extract from what that writes"
            )
        for pair in pairs:
            self._check_pair(pair)
        stacks = {stack: self._plan_stack(stack, pairs) for stack in STACKS}
        folds = bool(checkpoint.low_rank) and len(pairs) == 1
        if not folds and all(stack.form in (StackForm.DENSE, StackForm.WHOLE) for stack in stacks.values()):
            if checkpoint.low_rank:
                raise TaskMoEError(
                    f"--lang-pairs {'+'.join(pairs)}: low-rank matrices fold for one pair, and several need the whole "
                    "model, of which no stack routes by task; separate the pairs with commas"
                )
            raise TaskMoEError(
                f"{checkpoint.name}: no stack routes by task, so every pair needs the whole model; train with "
                "source, target, pair or group routing, or with --task-low-rank"
            )
        source, target = (each - 1 for each in self._ids(pairs[0]))
        factors = {name: stack.config.low_rank_factors(source, target) for name, stack in stacks.items()}
        return Plan(tuple(pairs), stacks, factors if folds else None)

    def _check_pair(self, pair: str) -> None:
        """Raise ``TaskMoEError`` if the model does not translate a pair; it need not have been trained on it."""
        where, trained = f"--lang-pairs {pair}: {self._checkpoint.path}", listed(self._checkpoint.pairs)
        for lang in split_pair(pair):
            if lang not in self._langs:
                raise TaskMoEError(f"{where} does not know the language {lang}; it was trained on {trained}")
        for stack, config in self._configs.items():
            if config.table is not None and config.table.lookup[self._ids(pair)] < 0:
                raise TaskMoEError(
                    f"{where} has no experts for it in the {stack}, which routes by {config.routing}; it was trained "
                    f"on {trained}"
                )
        sides = zip(("source", "target"), split_pair(pair), self._trained)
        missing = next((f"{side} {lang}" for side, lang, known in sides if lang not in known), None)
        if missing and self._checkpoint.low_rank:
            raise TaskMoEError(f"{where} has no low-rank matrices for the {missing}; it was trained on {trained}")

    def _plan_stack(self, stack: str, pairs: Sequence[str]) -> StackPlan:
        config = self._configs[stack]
        layers, moe_layers = config.layers, config.moe_layers
        if config.table is None:
            form = StackForm.WHOLE if moe_layers else StackForm.DENSE
            return StackPlan(config, form, layers, moe_layers, tuple(pairs), {}, (), {})
        kept = self._table_of(config, pairs)
        place = {name: row for row, name in enumerate(config.table.names)}
        rows = [place[name] for name in kept.names]
        tables = self._gates[stack]
        gates = {layer: _rows(table, rows) for layer, table in tables.items()}
        if any(table.sparse for table in tables.values()):
            gates = {layer: _chosen(*table) for layer, table in gates.items()}
        task = {pair: int(kept.lookup[self._ids(pair)]) for pair in pairs}
        # Where low-rank matrices are kept, every feed-forward network without experts has some, and experts have none.
        folds = len(kept.names) == 1 and (len(pairs) == 1 or not config.low_rank)
        form = StackForm.PRUNED if not config.by_task else StackForm.FOLDED if folds else StackForm.ROUTED
        return StackPlan(config, form, layers, moe_layers, tuple(pairs), gates, kept.names, task)

    def _table_of(self, config: StackConfig, pairs: Sequence[str]) -> TaskTable:
        """The tasks of some pairs, as the stack of a subnet has them."""
        if config.restriction is not None:
            return config.restriction.without(pairs, config.langs).table(config.langs)
        table = StackConfig.from_args(args_for(self._checkpoint.args, pairs), config.stack).table
        assert table is not None
        return table

    def _ids(self, pair: str) -> tuple[int, int]:
        source, target = split_pair(pair)
        return self._langs[source], self._langs[target]


def args_for(args: Namespace, pairs: Sequence[str]) -> Namespace:
    """The model's arguments as if it had been trained on these pairs alone."""
    args = copy(args)
    args.taskmoe_lang_pairs = ",".join(pairs)
    return args


def _rows(table: Gates, rows: list[int]) -> tuple[Tensor, Tensor]:
    return table.experts[rows], table.weights[rows]


def _chosen(experts: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The gates of tasks without choices that are none: a single task has fewer, several name their first again."""
    none = weights == 0
    if len(none) == 1:
        return experts[:, ~none[0]], weights[:, ~none[0]]
    return torch.where(none, experts[:, :1], experts), weights
