"""What is said of a subnet: ``subnet.json`` and the printed table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from taskmoe_plugin.subnet.checkpoint import MappedTensors
from taskmoe_plugin.subnet.plan import Plan, StackForm, StackPlan
from taskmoe_plugin.subnet.weights import Recipe

_BUFFER = re.compile(r"(encoder|decoder)\.(version|tasks\.(share|gates\.(experts|weights|head_start)))")
HEADER = ("pairs", "form", "parameters", "of", "ratio", "bytes", "of", "seconds")


@dataclass(frozen=True)
class Size:
    """Parameters and their bytes; weights that are shared count once."""

    parameters: int
    bytes: int

    @classmethod
    def of_model(cls, tensors: MappedTensors) -> Size:
        """The size of the full model."""
        names = [name for name in tensors.names() if _is_parameter(name) and name not in tensors.tied]
        return cls(sum(tensors.shape(name).numel() for name in names), sum(map(tensors.nbytes, names)))


def count_parameters(recipes: Mapping[str, Recipe]) -> int:
    """Parameters of a subnet."""
    return sum(recipe.shape.numel() for recipe in {recipe for name, recipe in recipes.items() if _is_parameter(name)})


def _is_parameter(name: str) -> bool:
    return not _BUFFER.fullmatch(name)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: the pairs.
        form: see ``Plan.form``.
        full, subnet: the sizes before and after; the subnet's bytes are those of its file.
        seconds: how long extraction took; None: it was there.
        verified: for each pair that was compared with the full model, how far they agree.
    """

    name: str
    form: str
    full: Size
    subnet: Size
    seconds: float | None
    verified: dict[str, str] = field(default_factory=dict)


def table(rows: Iterable[Row]) -> str:
    """The table of what was extracted, with a header, columns aligned, and what verification found."""
    rows = list(rows)
    cells: list[Sequence[str]] = [HEADER]
    for row in rows:
        ratio = row.full.parameters / row.subnet.parameters
        counts = [f"{size.parameters:,}" for size in (row.subnet, row.full)]
        sizes = [readable(size.bytes) for size in (row.subnet, row.full)]
        seconds = "kept" if row.seconds is None else f"{row.seconds:.1f}"
        cells.append((row.name, row.form, *counts, f"{ratio:.1f}", *sizes, seconds))
    widths = [max(map(len, column)) for column in zip(*cells)]
    notes = [f"{pair} verified: {note}" for row in rows for pair, note in row.verified.items()]
    return "\n".join([*(_line(line, widths) for line in cells), *notes])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [
        cell.ljust(width) if index < 2 else cell.rjust(width) for index, (cell, width) in enumerate(zip(cells, widths))
    ]
    return "  ".join(aligned).rstrip()


def readable(count: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def describe_gates(plan: Plan) -> dict[str, Any]:
    """The experts and gate weights of every MoE layer: stack → layer → pair → experts and weights, best first.

    Layers that keep all their experts have the word ``all``, those of a pruned stack the numbers of the kept ones.
    """
    return {
        stack: {str(layer): _layer_gates(stack_plan, layer) for layer in stack_plan.moe_layers}
        for stack, stack_plan in plan.stacks.items()
    }


def _layer_gates(stack: StackPlan, layer: int) -> Any:
    if stack.form is StackForm.PRUNED:
        return stack.shape([]).experts[layer]
    if layer not in stack.gates:
        return "all"
    experts, weights = (table.tolist() for table in stack.gates[layer])
    return {pair: {"experts": experts[task], "weights": weights[task]} for pair, task in stack.task.items()}


def versions(*packages: str) -> dict[str, str]:
    """Versions of installed packages; those that are not installed are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that people can read."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
