"""A report as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from taskmoe_plugin.report.content import Report
from taskmoe_plugin.report.usage import StackUsage

SHOWN = 4  # experts of a task, where it uses more than that


def summary(report: Report) -> str:
    """The experts of every task, the load of the layers' experts, and the parameters."""
    blocks = [text for usage in report.stacks for text in (_experts(usage), _loads(usage))]
    for stack, routing in report.left_out.items():
        blocks.append(f"{stack}, routed by {routing}: left out; give --data DATA_BIN, on which to run the model")
    if report.low_rank:
        count = f"{report.low_rank_parameters:,}"
        blocks.append(f"low-rank language matrices of rank {report.low_rank}: {count} parameters, folded into subnets")
    return "\n\n".join([*blocks, _parameters(report)])


def _experts(usage: StackUsage) -> str:
    header = ["pair" if usage.measured else "task", *(f"layer {layer}" for layer in usage.layers)]
    rows = [
        [task, *(_cell(layer.weight[row]) for layer in usage.layers.values())] for row, task in enumerate(usage.tasks)
    ]
    config = usage.config
    most = f"the {SHOWN} experts with most weight" if usage.measured or config.task_experts > SHOWN else "experts"
    whose = "mean weight" if usage.measured or config.by_task else "weight, of those that tokens choose among"
    title = f"{usage.stack}, routed by {config.routing}: {most} ({whose})"
    return f"{title}\n{columns(header, rows, left=len(header))}"


def _cell(weight: Tensor) -> str:
    values, experts = weight.topk(min(SHOWN, weight.numel()))
    pairs = zip(experts.tolist(), values.tolist())
    return ", ".join(f"{expert} ({value:.2f})" for expert, value in pairs if value > 0) or "none"


def _loads(usage: StackUsage) -> str:
    rows = []
    for layer, each in usage.layers.items():
        load = each.expert_load
        used = int((load > 0).sum())
        rows.append(
            [f"layer {layer}", f"{used} of {load.numel()}", f"{float(load.max()):.3f}", f"{1 / load.numel():.3f}"]
        )
    return columns([usage.stack, "experts in use", "largest load", "even load"], rows)


def _parameters(report: Report) -> str:
    full = report.parameters
    rows = [["full model", "", f"{full:,}", "1.0", ""]]
    for size in report.subnets:
        padded = "" if size.padded is None else f"{size.padded:,}"
        rows.append([size.pair, size.form, f"{size.parameters:,}", f"{full / size.parameters:.1f}", padded])
    return columns(["subnet", "form", "parameters", "ratio", "padded"], rows, left=2)


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines whose cells line up, the first ``left`` of each to the left."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    aligned = (
        [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths))
        ]
        for line in lines
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)
