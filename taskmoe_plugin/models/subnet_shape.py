"""What a conversion or extraction has left of a stack, where its layers differ from each other."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.models.task_table import TaskTable
from taskmoe_plugin.moe import FixedTaskGates


@dataclass(frozen=True)
class Restriction:
    """Which experts the tokens of each language may choose, in a stack that routes by token.

    Attributes:
        by: what decides: ``source``, ``target`` or ``pair``.
        pairs: the pairs it was made for.
        allowed: for each MoE layer, for each task of ``table``, ascending places of its experts among the layer's.
    """

    by: str
    pairs: tuple[str, ...]
    allowed: Mapping[int, tuple[tuple[int, ...], ...]]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Restriction:
        """What ``asdict`` made of it, after its way through JSON."""
        allowed = {int(layer): tuple(map(tuple, tasks)) for layer, tasks in content["allowed"].items()}
        return cls(content["by"], tuple(content["pairs"]), allowed)

    def table(self, langs: Sequence[str]) -> TaskTable:
        """The tasks.

        Args:
            langs: all languages, in the order of their ids.
        """
        return TaskTable.build(self.by, langs, self.pairs)

    def gates(self, layers: Sequence[int], experts: int) -> FixedTaskGates:
        """Gates of the tasks, each of which has its experts with equal weights; checkpoints have no tensors of them.

        Args:
            layers: the MoE layers.
            experts: E, at least as many as any of them has.
        """
        allowed = [self.allowed[layer] for layer in layers]
        most = max(len(own) for tasks in allowed for own in tasks)
        gates = FixedTaskGates(len(allowed), len(allowed[0]), experts, most, sparse=True, persistent=False)
        for layer, tasks in enumerate(allowed):
            for task, own in enumerate(tasks):
                gates.experts[layer, task, : len(own)] = torch.tensor(own)
                gates.weights[layer, task, : len(own)] = 1 / len(own)
        return gates

    def experts_of(self, layer: int, pairs: Iterable[str], langs: Sequence[str]) -> tuple[int, ...]:
        """The experts of a layer that any of some pairs may choose, ascending."""
        tasks = self._tasks(pairs, langs)
        return tuple(sorted({expert for task in tasks for expert in self.allowed[layer][task]}))

    def without(self, pairs: Sequence[str], langs: Sequence[str]) -> Restriction:
        """The restriction of some of the pairs, in layers that have only the experts of these left."""
        kept = self._tasks(pairs, langs)
        allowed = {}
        for layer, tasks in self.allowed.items():
            own = sorted({expert for task in kept for expert in tasks[task]})
            place = {expert: new for new, expert in enumerate(own)}
            allowed[layer] = tuple(tuple(place[expert] for expert in tasks[task]) for task in kept)
        return Restriction(self.by, tuple(pairs), allowed)

    def _tasks(self, pairs: Iterable[str], langs: Sequence[str]) -> list[int]:
        """The tasks of some pairs, in the order that they have without the others."""
        place = {name: task for task, name in enumerate(self.table(langs).names)}
        return [place[name] for name in TaskTable.build(self.by, langs, list(pairs)).names]


@dataclass(frozen=True)
class SubnetShape:
    """The layers of one stack that has lost some of its experts.

    Attributes:
        ffn_dims: hidden width of the feed-forward network of each layer; empty: all have the stack's ffn dim.
        experts: for each MoE layer that lost experts, the global indices of those it kept.
        restriction: which of them a token may choose; None: any.
    """

    ffn_dims: tuple[int, ...] = ()
    experts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    restriction: Restriction | None = None

    @classmethod
    def of(cls, args: Namespace, stack: str) -> SubnetShape | None:
        """The shape of the ``encoder`` or ``decoder`` that a model's arguments carry; None if it lost nothing."""
        shapes = getattr(args, "taskmoe_subnet", None)
        if shapes is None:
            return None
        shape = json.loads(shapes)[stack]
        restriction = shape.get("restriction")
        return cls(
            tuple(shape["ffn_dims"]),
            {int(index): tuple(kept) for index, kept in shape["experts"].items()},
            None if restriction is None else Restriction.from_json(restriction),
        )

    @classmethod
    def is_subnet(cls, args: Namespace) -> bool:
        """Whether a model's arguments are those of a subnet, and not of a model that still is one for further use."""
        shapes = (cls.of(args, stack) for stack in ("encoder", "decoder"))
        return any(shape is not None and shape.ffn_dims for shape in shapes)

    @staticmethod
    def write(args: Namespace, shapes: Mapping[str, SubnetShape]) -> None:
        """Note the shapes of both stacks in a model's arguments."""
        args.taskmoe_subnet = json.dumps({stack: asdict(shape) for stack, shape in shapes.items()})


def take_up_pruning(args: Namespace, trained: Namespace) -> None:
    """Give a model that training makes the layers of a pruned one that it goes on from.

    Args:
        args: the arguments of the new model.
        trained: those of the checkpoint's.

    Raises:
        UsageError: pruned layers cannot be trained with these flags.
    """
    if not hasattr(trained, "taskmoe_subnet") or SubnetShape.is_subnet(trained):
        return
    if getattr(args, "moe_expert_parallel", False):
        raise UsageError(
            "--moe-expert-parallel: the layers of a pruned model, as training goes on from here, may have different "
            "numbers of experts, which cannot be spread; leave it out"
        )
    args.taskmoe_subnet = trained.taskmoe_subnet
