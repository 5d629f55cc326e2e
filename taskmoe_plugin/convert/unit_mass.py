"""How much each hidden unit of a dense model's feed-forward networks puts out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def counted_mass(stack: Any) -> Iterator[list[Tensor]]:
    """Within the context, sums up what the hidden units of each layer of an encoder or a decoder put out.

    Yields, for each layer, (F,) fp32: Σ over the tokens of |activation(h_i)| · ‖column i of fc2‖. With ReLU that is the
    activation by which MoEfication (Zhang et al. 2022) tells which experts a token needs, weighed by how far a unit
    reaches.

    Args:
        stack: fairseq's, with dense layers, called with tokens (B, T) first.
    """
    counts = [_Count(layer, stack.padding_idx) for layer in stack.layers]
    with ExitStack() as hooks:
        for count in counts:
            hooks.callback(stack.register_forward_pre_hook(count.begin).remove)
            hooks.callback(count.layer.fc1.register_forward_hook(count.add).remove)
        yield [count.total for count in counts]


class _Count:
    """Sums up one layer."""

    def __init__(self, layer: Any, padding: int) -> None:
        self.layer = layer
        self.padding = padding
        self.reach = layer.fc2.weight.detach().float().norm(dim=0)
        self.total = torch.zeros_like(self.reach)
        self.kept: Tensor | None = None

    def begin(self, stack: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Before a batch of tokens (B, T) passes."""
        self.kept = args[0].ne(self.padding).t()

    def add(self, fc1: nn.Module, args: tuple[Tensor, ...], hidden: Tensor) -> None:
        """When its hidden units (T, B, F), before the activation, are known."""
        assert self.kept is not None
        active: Tensor = self.layer.activation_fn(hidden[self.kept]).detach().float().abs()
        self.total += active.sum(dim=0) * self.reach
