"""What the comparison records of a trained model: its parameters, and what the gates of its tasks have learnt."""

from __future__ import annotations

import statistics
from itertools import combinations
from pathlib import Path

import torch

from taskmoe_plugin.parallel.manifest import is_stacked
from taskmoe_plugin.report.sizes import subnet_sizes
from taskmoe_plugin.report.usage import StackUsage, moe_stacks, task_usage
from taskmoe_plugin.subnet.checkpoint import Checkpoint

Families = list[list[str]]


def parameters(checkpoint: Path, flags: list[str], has_subnets: bool) -> dict[str, float]:
    """How many parameters a model has, how many a token uses, and how many are stored to translate one direction.

    The last are those of a subnet, where the model has any (the mean over directions), and else all. What is folded or
    merged into other weights before a token passes, language matrices and experts merged by task, counts in the total
    alone.
    """
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["model"]
    shared: dict[int, int] = {}
    added = experts = used = 0
    for name, tensor in weights.items():
        if is_stacked(name):
            experts += tensor.numel()
            used += tensor[0].numel() * _experts_of_a_token(flags)
        elif "low_rank" in name:
            added += tensor.numel()
        elif tensor.is_floating_point():
            shared[tensor.data_ptr()] = tensor.numel()
    outside = sum(shared.values())
    total = outside + added + experts
    subnets = [each.parameters for each in subnet_sizes(Checkpoint.open(checkpoint))] if has_subnets else [total]
    return {"total": total, "active": outside + used, "served": statistics.mean(subnets)}


def _experts_of_a_token(flags: list[str]) -> int:
    if "--moe-combine" in flags and flags[flags.index("--moe-combine") + 1] == "weights":
        return 1
    return int(flags[flags.index("--moe-top-k") + 1])


def updates_of(checkpoint: Path) -> int:
    """How many updates a checkpoint has seen."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return int(state["optimizer_history"][-1]["num_updates"])


def task_gates(checkpoint: Path, families: Families) -> dict[str, dict[str, float]]:
    """For each stack that routes by language or pair: what its gates have learnt, as means over its MoE layers."""
    opened = Checkpoint.open(checkpoint)
    return {
        name: describe(task_usage(opened, config), families)
        for name, config in moe_stacks(opened).items()
        if config.by_task
    }


def describe(usage: StackUsage, families: Families) -> dict[str, float]:
    """What ``task_gates`` says of one stack.

    The share of experts that no task uses; the similarity of two different tasks (1 where they share all experts with
    equal weights, 0 where none), and those of tasks that are languages of one family and of two; the weight of a
    task's first expert, in parts of all.
    """
    weights = torch.stack([each.weight for each in usage.layers.values()])
    weights = weights / weights.sum(dim=2, keepdim=True)  # they sum to the scale of the experts' outputs
    similarity = usage.similarity()
    family_of = {lang: number for number, family in enumerate(families) for lang in family}
    alike: dict[str, list[float]] = {"similarity": [], "related": [], "unrelated": []}
    for (row, one), (column, other) in combinations(enumerate(usage.tasks), 2):
        found = float(similarity[row, column])
        alike["similarity"].append(found)
        if one in family_of and other in family_of:
            alike["related" if family_of[one] == family_of[other] else "unrelated"].append(found)
    return {
        "unused": float((weights.amax(dim=1) == 0).float().mean()),
        "first_weight": float(weights.amax(dim=2).mean()),
        **{name: statistics.mean(values) for name, values in alike.items() if values},
    }
