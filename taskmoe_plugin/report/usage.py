"""Which experts the tasks of each stack use: read from a checkpoint, without building the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmoe_plugin.models.config import STACKS
from taskmoe_plugin.models.stack import StackConfig
from taskmoe_plugin.moe import Usage
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.gates import task_tables


@dataclass(frozen=True)
class StackUsage:
    """How the tasks of one stack use its experts.

    Attributes:
        config: the stack.
        tasks: the tasks; where it was measured, the language pairs.
        layers: the usage of each MoE layer, by the layer's index counted from 0.
        measured: whether it was counted on data, rather than read from the gates.
    """

    config: StackConfig
    tasks: tuple[str, ...]
    layers: dict[int, Usage]
    measured: bool = False

    @property
    def stack(self) -> str:
        """``encoder`` or ``decoder``."""
        return self.config.stack

    def similarity(self) -> Tensor:
        """(tasks, tasks) fp32: how much two tasks share experts, 1 with equal weights, 0 if they share none.

        The mean over layers of Σ_e min(a_e, b_e), where a and b are the tasks' weights, made to sum to 1.
        """
        return torch.stack([_overlap(usage.weight) for usage in self.layers.values()]).mean(dim=0)


def _overlap(weight: Tensor) -> Tensor:
    # A task without tokens has no weights, and shares nothing.
    parts = weight / weight.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    # Row by row: of thousands of tasks all at once take more memory than there is.
    return torch.stack([torch.minimum(own, parts).sum(dim=-1) for own in parts])


def moe_stacks(checkpoint: Checkpoint) -> dict[str, StackConfig]:
    """The stacks that have MoE layers."""
    configs = {stack: StackConfig.from_args(checkpoint.args, stack) for stack in STACKS}
    return {stack: config for stack, config in configs.items() if config.moe_layers}


def _numbered(usage: Usage, held: Sequence[int]) -> Usage:
    """The usage of a layer whose experts, of which a pruned one has not all, keep their numbers."""
    weight, load = torch.zeros_like(usage.weight), torch.zeros_like(usage.load)
    weight[:, held], load[:, held] = usage.weight[:, : len(held)], usage.load[:, : len(held)]
    return Usage(weight, load, usage.share)


def task_usage(checkpoint: Checkpoint, config: StackConfig) -> StackUsage:
    """The usage of a stack that has tasks.

    Where it routes by token among the experts of a task, it is that of tokens which prefer none of these, and all tasks
    count the same.

    Args:
        checkpoint: the model.
        config: the stack.

    Raises:
        TaskMoEError: a router's tensors are missing.
    """
    assert config.table is not None
    if config.by_task:
        share = checkpoint.tensors.tensor(f"{config.stack}.tasks.share").float()
    else:
        share = torch.ones(len(config.table.names))
    by_weight = config.merge or not config.by_task
    tables = task_tables(checkpoint.tensors, config)
    usage = {
        layer: _numbered(Usage.of_table(gates, share, by_weight), config.held_experts(layer))
        for layer, gates in tables.items()
    }
    return StackUsage(config, config.table.names, usage)
