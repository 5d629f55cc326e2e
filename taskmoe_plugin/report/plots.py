"""A report as pictures. Sizes are in inches, and fixed for each cell: what grows with the model is the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from torch import Tensor

from taskmoe_plugin.report.usage import StackUsage

CELL = 0.17
LETTER = 0.075
# Room for a colour bar, for the title of a panel, and for that of the picture.
RIGHT, TOP, HEAD = 0.75, 0.3, 0.3
BAR_HEIGHT = 1.4
# Panels stand side by side up to this width.
MAX_WIDTH = 16.0
SMALL, NORMAL, LARGE = 7, 8, 10
# What a task does not use at all is grey, and so differs from what it uses a little.
COLOURS, NONE = "YlGnBu", "0.9"


def figures(usage: StackUsage) -> Iterator[tuple[str, Figure]]:
    """The pictures of a stack, with their names."""
    yield f"{usage.stack}-experts", experts_figure(usage)
    yield f"{usage.stack}-similarity", similarity_figure(usage)
    yield f"{usage.stack}-load", load_figure(usage)


def experts_figure(usage: StackUsage) -> Figure:
    """A heat map of tasks × experts for each layer: the mean weight of each expert."""
    matrices = [each.weight for each in usage.layers.values()]
    tasks, experts = matrices[0].shape
    figure, panels = _panels(
        len(matrices),
        experts * CELL,
        tasks * CELL,
        _label_width(usage.tasks),
        f"{_title(usage)}: weight of each expert (grey: unused)",
    )
    scale = Normalize(0, max(float(each.max()) for each in matrices))
    for axes, layer, matrix in zip(panels, usage.layers, matrices):
        image = _heat_map(axes, matrix, scale)
        axes.set_title(f"layer {layer}", fontsize=NORMAL)
        axes.set_yticks(range(tasks), usage.tasks, fontsize=SMALL)
        _number_experts(axes, experts)
        _colour_bar(axes, image)
    return figure


def similarity_figure(usage: StackUsage) -> Figure:
    """A heat map of tasks × tasks, similar ones beside each other: how much they share experts."""
    similarity = usage.similarity()
    order = cluster_order(similarity)
    names = [usage.tasks[task] for task in order]
    side, margin = len(names) * CELL, _label_width(names)
    figure, [axes] = _panels(1, side, side, margin, f"{_title(usage)}: shared experts (grey: none)", bottom=margin)
    image = _heat_map(axes, similarity[order][:, order], Normalize(0, 1))
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    axes.set_xticks(range(len(names)), names, fontsize=SMALL, rotation=90)
    _colour_bar(axes, image)
    return figure


def load_figure(usage: StackUsage) -> Figure:
    """The share of all assignments that each expert gets, for each layer."""
    experts = usage.config.experts
    loads = [each.expert_load.tolist() for each in usage.layers.values()]
    figure, panels = _panels(
        len(loads),
        experts * CELL,
        BAR_HEIGHT,
        _label_width(["0.000"]),
        f"{_title(usage)}: load of each expert (dashed: even)",
    )
    for axes, layer, load in zip(panels, usage.layers, loads):
        axes.bar(range(experts), load, width=0.8)
        axes.axhline(1 / experts, color="black", linewidth=0.8, linestyle="--")
        axes.set_xlim(-0.5, experts - 0.5)
        axes.set_ylim(0, max(map(max, loads)) * 1.05)
        axes.set_title(f"layer {layer}", fontsize=NORMAL)
        axes.tick_params(axis="y", labelsize=SMALL)
        _number_experts(axes, experts)
    return figure


def cluster_order(similarity: Tensor) -> list[int]:
    """Tasks in the order of the leaves of their average-linkage clustering, with similar neighbours (Bar-Joseph et al.
    2001, optimal leaf ordering).

    Args:
        similarity: (tasks, tasks), 1 for the same and 0 for nothing in common.
    """
    if len(similarity) < 2:
        return [0]
    distances = squareform(1 - similarity.double().numpy(), checks=False)
    tree = hierarchy.linkage(distances, method="average", optimal_ordering=True)
    return hierarchy.leaves_list(tree).tolist()  # type: ignore[no-any-return]


def _title(usage: StackUsage) -> str:
    return f"{usage.stack}, routed by {usage.config.routing}"


def _label_width(labels: Sequence[str]) -> float:
    return 0.15 + LETTER * max(map(len, labels))


def _panels(
    count: int, width: float, height: float, left: float, title: str, bottom: float = 0.5
) -> tuple[Figure, list[Any]]:
    """A figure with ``count`` axes of the given size, each with room for labels, and for a colour bar on the right."""
    outer_width, outer_height = left + width + RIGHT, bottom + height + TOP
    across = min(count, max(1, int(MAX_WIDTH / outer_width)))
    down = -(-count // across)
    size = max(across * outer_width, LETTER * 1.3 * len(title)), down * outer_height + HEAD
    figure = Figure(figsize=size)
    figure.text(0.1 / size[0], 1 - 0.1 / size[1], title, fontsize=LARGE, va="top")
    panels = []
    for index in range(count):
        row, column = divmod(index, across)
        x, y = column * outer_width + left, size[1] - HEAD - (row + 1) * outer_height + bottom
        panels.append(figure.add_axes((x / size[0], y / size[1], width / size[0], height / size[1])))
    return figure, panels


def _heat_map(axes: Any, matrix: Tensor, scale: Normalize) -> Any:
    rows, columns = matrix.shape
    shown = matrix.masked_fill(matrix == 0, float("nan")).numpy()
    image = axes.imshow(shown, cmap=COLOURS, norm=scale, aspect="auto", interpolation="none")
    axes.set_facecolor(NONE)
    axes.set_xticks([column - 0.5 for column in range(1, columns)], minor=True)
    axes.set_yticks([row - 0.5 for row in range(1, rows)], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.4)
    axes.tick_params(which="minor", length=0)
    return image


def _number_experts(axes: Any, experts: int) -> None:
    upright = 90 if experts > 10 else 0
    axes.set_xticks(range(experts), [str(expert) for expert in range(experts)], fontsize=SMALL, rotation=upright)
    axes.set_xlabel("expert", fontsize=NORMAL)


def _colour_bar(axes: Any, image: Any) -> None:
    width, height = axes.get_figure().get_size_inches() * axes.get_position().size
    scale = axes.inset_axes((1 + 0.1 / width, 1 - min(height, 1.5) / height, 0.1 / width, min(height, 1.5) / height))
    axes.get_figure().colorbar(image, cax=scale).ax.tick_params(labelsize=SMALL)
