"""Pictures: order, labels, and what they show."""

from __future__ import annotations

import io
from argparse import Namespace
from itertools import pairwise
from typing import Any

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from taskmoe_plugin.moe import Usage
from taskmoe_plugin.report.plots import cluster_order, experts_figure, figures, similarity_figure
from taskmoe_plugin.report.usage import StackUsage


def usage_of(tasks: int, experts: int, layers: int = 2, seed: int = 0) -> StackUsage:
    """Random top-2 gates of tasks with names as long as en-de."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in range(layers):
        gates = torch.rand(tasks, experts, generator=generator)
        weight = gates * (gates >= gates.topk(2).values[:, -1:])
        weight /= weight.sum(dim=1, keepdim=True)
        found[layer] = Usage(weight, (weight > 0) / 2, torch.full((tasks,), 1 / tasks))
    config: Any = Namespace(stack="encoder", routing="pair", experts=experts, top_k=2, table=object())
    return StackUsage(config, tuple(f"en-{row:02}" for row in range(tasks)), found)


def overlapping(figure: Any, renderer: Any) -> list[tuple[str, str]]:
    """Tick labels that run into their neighbour."""
    found = []
    for axes in figure.axes:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [(label.get_text(), label.get_window_extent(renderer)) for label in labels if label.get_text()]
            found += [(a, b) for (a, one), (b, other) in pairwise(boxes) if one.overlaps(other)]
    return found


def outside(figure: Any, renderer: Any) -> list[str]:
    """Labels that the edge of the picture cuts off."""
    width, height = figure.canvas.get_width_height()
    found = []
    for axes in figure.axes:
        box = axes.get_tightbbox(renderer)
        if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height:
            found.append(axes.get_title())
    return found


@pytest.mark.parametrize(("tasks", "experts", "layers"), [(1, 2, 1), (4, 8, 2), (10, 11, 3), (30, 128, 3)])
def test_all_labels_are_shown_and_none_overlaps_or_is_cut_off(tasks: int, experts: int, layers: int) -> None:
    for name, figure in figures(usage_of(tasks, experts, layers)):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        assert not overlapping(figure, canvas.get_renderer()), name
        assert not outside(figure, canvas.get_renderer()), name
        labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
        assert len(labels) == (tasks if name.endswith("similarity") else experts), name


def test_the_heat_map_has_a_panel_for_each_layer_with_its_weights() -> None:
    usage = usage_of(tasks=4, experts=6)
    panels = [axes for axes in experts_figure(usage).axes if axes.images and axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["layer 0", "layer 1"]
    for axes, layer in zip(panels, usage.layers.values()):
        shown = torch.tensor(axes.images[0].get_array().filled(0))
        assert torch.equal(shown, layer.weight)
        assert [label.get_text() for label in axes.get_yticklabels()] == list(usage.tasks)


def test_similar_tasks_become_neighbours() -> None:
    similarity = torch.eye(6)
    for a, b in ((0, 5), (1, 4), (2, 3)):
        similarity[a, b] = similarity[b, a] = 0.9
    order = cluster_order(similarity)
    assert sorted(order) == list(range(6))
    assert all(abs(order.index(a) - order.index(b)) == 1 for a, b in ((0, 5), (1, 4), (2, 3)))


def test_similarities_are_drawn_in_the_order_of_their_labels() -> None:
    usage = usage_of(tasks=7, experts=5)
    axes = similarity_figure(usage).axes[0]
    order = [usage.tasks.index(label.get_text()) for label in axes.get_yticklabels()]
    assert order == cluster_order(usage.similarity())
    shown = torch.tensor(axes.images[0].get_array().filled(0))
    assert torch.equal(shown, usage.similarity()[order][:, order])


@pytest.mark.parametrize(("form", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_pictures_can_be_written(form: str, start: bytes) -> None:
    for _, figure in figures(usage_of(tasks=3, experts=4)):
        file = io.BytesIO()
        figure.savefig(file, format=form)
        assert file.getvalue().startswith(start)
