"""What a report says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.report.data import measured_usage
from taskmoe_plugin.report.sizes import SubnetSize, low_rank_parameters, subnet_sizes
from taskmoe_plugin.report.usage import StackUsage, moe_stacks, task_usage
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.report import Size

Row = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What is found out about a checkpoint.

    Attributes:
        checkpoint: its path.
        stacks: the usage of each stack.
        left_out: the stacks that route by sentence or token, and by which, when there was no data to run the model on.
        parameters: those of the full model.
        subnets: the subnet of each pair; none if every pair needs the whole model.
        low_rank: the rank of the low-rank language matrices, 0 if there are none.
        low_rank_parameters: the parameters of these.
    """

    checkpoint: Path
    stacks: list[StackUsage]
    left_out: dict[str, str]
    parameters: int
    subnets: list[SubnetSize]
    low_rank: int
    low_rank_parameters: int

    def experts(self) -> list[Row]:
        """A line for every expert that a task uses in a layer."""
        return [
            {
                "stack": usage.stack, "layer": layer, "task": task, "expert": expert,
                "weight": float(each.weight[row, expert]), "load": float(each.load[row, expert]),
            }
            for usage in self.stacks
            for layer, each in usage.layers.items()
            for row, task in enumerate(usage.tasks)
            for expert in each.load[row].nonzero().flatten().tolist()
        ]  # fmt: skip

    def loads(self) -> list[Row]:
        """A line for every expert: its share of all assignments of its layer."""
        return [
            {"stack": usage.stack, "layer": layer, "expert": expert, "load": load}
            for usage in self.stacks
            for layer, each in usage.layers.items()
            for expert, load in enumerate(each.expert_load.tolist())
        ]

    def similarities(self) -> list[Row]:
        """A line for every two tasks of a stack."""
        return [
            {"stack": usage.stack, "task": task, "other": other, "similarity": value}
            for usage in self.stacks
            for task, row in zip(usage.tasks, usage.similarity().tolist())
            for other, value in zip(usage.tasks, row)
        ]

    def sizes(self) -> list[Row]:
        """A line for the full model and for every subnet."""
        full = {"pair": "", "form": "full model", "parameters": self.parameters, "padded": None}
        return [full, *map(asdict, self.subnets)]

    def as_json(self) -> dict[str, Any]:
        """All of it, stack by stack and layer by layer."""
        return {
            "checkpoint": str(self.checkpoint),
            "stacks": {usage.stack: _describe(usage) for usage in self.stacks},
            "left_out": self.left_out,
            "parameters": {"full_model": self.parameters, "subnets": [asdict(size) for size in self.subnets]},
            "low_rank": {"rank": self.low_rank, "parameters": self.low_rank_parameters},
        }


def _describe(usage: StackUsage) -> dict[str, Any]:
    config = usage.config
    return {
        "routing": config.routing,
        "experts": config.experts,
        "top_k": config.top_k,
        "tasks": usage.tasks,
        "layers": {
            str(layer): {
                "weight": _matrix(each.weight),
                "load": _matrix(each.load),
                "token_share": dict(zip(usage.tasks, each.share.tolist())),
                "expert_load": each.expert_load.tolist(),
            }
            for layer, each in usage.layers.items()
        },
        "similarity": _matrix(usage.similarity()),
    }


def _matrix(values: Tensor) -> list[list[float]]:
    return values.tolist()


def find_out(path: Path, data: Sequence[Path], subset: str, sentences: int | None) -> Report:
    """Find out what there is to say of a checkpoint.

    Args:
        path: the checkpoint.
        data: the directories of the binarised data; none: stacks that need data are left out.
        subset: the set to run the model on.
        sentences: how many of each pair; None: all.

    Raises:
        TaskMoEError: something a user can put right.
    """
    checkpoint = Checkpoint.open(path)
    stacks = moe_stacks(checkpoint)
    low_rank = checkpoint.low_rank
    if not stacks and not low_rank:
        raise TaskMoEError(f"{path}: has no MoE layer; give a checkpoint of a model with experts")
    has_tasks = [name for name, config in stacks.items() if config.table is not None]
    if stacks and not has_tasks and not data:
        raise TaskMoEError(
            f"{path}: no stack routes by task, so only data can tell who uses which expert; give --data DATA_BIN"
        )
    by_data = [name for name, config in stacks.items() if data and not config.by_task]
    usages = {name: task_usage(checkpoint, stacks[name]) for name in has_tasks if name not in by_data}
    if by_data:
        measured = measured_usage(checkpoint, [stacks[name] for name in by_data], data, subset, sentences)
        usages |= {usage.stack: usage for usage in measured}
    return Report(
        checkpoint=path,
        stacks=[usages[name] for name in stacks if name in usages],
        left_out={name: config.routing for name, config in stacks.items() if name not in usages},
        parameters=Size.of_model(checkpoint.tensors).parameters,
        subnets=subnet_sizes(checkpoint) if low_rank or has_tasks else [],
        low_rank=low_rank,
        low_rank_parameters=low_rank_parameters(checkpoint.tensors),
    )
