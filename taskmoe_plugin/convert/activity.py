"""How tokens choose among the experts of the layers that they pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmoe_plugin.moe import MoELayer, Routing, Tokens


@dataclass(frozen=True)
class Activity:
    """How tokens choose among the E experts of one layer.

    Attributes:
        first: (E,) fp32, the share of the tokens whose first choice it is: the top-1 activity.
        confidence: (E,) fp32, its mean probability where it is the first choice; 0 where it never is.
        chosen: (E,) fp32, its share of all assignments, first and other choices.
    """

    first: Tensor
    confidence: Tensor
    chosen: Tensor

    @classmethod
    def of_sums(cls, sums: Tensor) -> Activity:
        """The activity that ``counted_choices`` summed up, (E, 3)."""
        first, probability, chosen = sums.unbind(dim=1)
        return cls(_share(first), probability / first.clamp(min=1), _share(chosen))

    @classmethod
    def mean(cls, each: Sequence[Activity]) -> Activity:
        """The mean of several, each of which counts as much."""
        parts = zip(*((one.first, one.confidence, one.chosen) for one in each))
        return cls(*(torch.stack(part).mean(dim=0) for part in parts))


def _share(counts: Tensor) -> Tensor:
    return counts / counts.sum().clamp(min=1)


@contextmanager
def counted_choices(layers: Sequence[MoELayer]) -> Iterator[list[Tensor]]:
    """Within the context, sums up the choices of all tokens in layers that route by token.

    Yields, for each layer, (E, 3) fp32: how many tokens have an expert as their first choice, the sum of its
    probabilities with these, and how many have it at all.
    """
    sums = [torch.zeros(layer.num_experts, 3, device=layer.experts.fc1_bias.device) for layer in layers]
    with ExitStack() as stack:
        for layer, total in zip(layers, sums):
            stack.callback(layer.register_forward_hook(_Count(total)).remove)
        yield sums


@dataclass(frozen=True)
class _Count:
    """A forward hook that adds a pass through a layer to a sum."""

    total: Tensor

    def __call__(self, layer: MoELayer, args: tuple[Tensor, Routing | Tokens], output: tuple[Tensor, Routing]) -> None:
        routing = output[1]
        first = routing.experts[:, :1]
        probability = routing.gates.probs.detach().gather(1, first)
        self.total[:, :2].index_add_(0, first.flatten(), torch.cat([torch.ones_like(probability), probability], dim=1))
        experts = routing.experts[routing.weights > 0] if routing.gates.sparse else routing.experts
        self.total[:, 2] += torch.bincount(experts.flatten(), minlength=self.total.size(0))
