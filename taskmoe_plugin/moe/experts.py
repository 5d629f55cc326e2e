"""All experts of a layer: feed-forward networks whose parameters are stacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskmoe_plugin.moe.fold import PARTS, fold, merge
from taskmoe_plugin.moe.gates import full_precision
from taskmoe_plugin.moe.groups import Groups
from taskmoe_plugin.moe.products import grouped_linear
from taskmoe_plugin.moe.quantize import round_weights

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward network ``fc2(activation(fc1(x)))`` of hidden width H.

    Attributes:
        fc1_weight: (H, C).
        fc1_bias: (H,).
        fc2_weight: (C, H).
        fc2_bias: (C,).
        activation: works on each hidden unit alone.
    """

    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor
    activation: Activation

    def __call__(self, x: Tensor, dropout: Activation | None = None) -> Tensor:
        """Map (…, C) to (…, C), with dropout after the activation if it is given."""
        hidden = self.activation(F.linear(x, self.fc1_weight, self.fc1_bias))
        return F.linear(hidden if dropout is None else dropout(hidden), self.fc2_weight, self.fc2_bias)


class _ScaledGradient(torch.autograd.Function):
    """A tensor as it is, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class Experts(nn.Module):
    """E feed-forward networks ``fc2(dropout(activation(fc1(x))))`` of one shape, as four parameters.

    Expert e has ``fc1_weight[e]`` (F, C), ``fc1_bias[e]`` (F,), ``fc2_weight[e]`` (C, F) and ``fc2_bias[e]`` (C,), with
    the initial values of fairseq's feed-forward layers. Every parameter has a gradient after every backward pass, zeros
    for experts that computed nothing.

    Args:
        count: E, the experts of the layer.
        width: C.
        ffn_width: F.
        activation: works on each hidden unit alone.
        dropout: after the activation, in training.
        held: which of the E experts this process has; all by default. The others' initial values are drawn too, so that
            all processes have drawn the same numbers afterwards.
        gain: the initial values of ``fc2`` are multiplied by it.
        bits: if given, weights are rounded to what this many bits can hold wherever they are used, and learn as if they
            were not (see ``quantize.round_weights``).
    """

    def __init__(
        self,
        count: int,
        width: int,
        ffn_width: int,
        activation: Activation,
        dropout: float = 0.0,
        held: range | None = None,
        gain: float = 1.0,
        bits: int | None = None,
    ) -> None:
        super().__init__()
        held = range(count) if held is None else held
        self.activation = activation
        self.dropout_module: nn.Module = nn.Dropout(dropout)
        self.bits = bits
        self.grad_scale = 1.0
        size = len(held)
        self.fc1_weight = nn.Parameter(torch.empty(size, ffn_width, width))
        self.fc1_bias = nn.Parameter(torch.empty(size, ffn_width))
        self.fc2_weight = nn.Parameter(torch.empty(size, width, ffn_width))
        self.fc2_bias = nn.Parameter(torch.empty(size, width))
        for expert in range(count):
            fc1, fc2 = nn.Linear(width, ffn_width), nn.Linear(ffn_width, width)
            if expert in held:
                self._set(expert - held.start, fc1, fc2)
        with torch.no_grad():
            self.fc2_weight.mul_(gain)
            self.fc2_bias.mul_(gain)

    @torch.no_grad()
    def _set(self, index: int, fc1: nn.Linear, fc2: nn.Linear) -> None:
        for name, linear in (("fc1", fc1), ("fc2", fc2)):
            getattr(self, f"{name}_weight")[index] = linear.weight
            getattr(self, f"{name}_bias")[index] = linear.bias

    def __len__(self) -> int:
        """The number of experts in this process."""
        return self.fc1_bias.size(0)

    def forward(self, x: Tensor, groups: Groups, merging: Tensor | None = None) -> Tensor:
        """Map (A, C) to (A, C).

        Args:
            x: the inputs of network 0, then those of network 1, and so on.
            groups: the inputs of each of P networks.
            merging: (P, E) fp32, the weights with which the experts are merged to P networks; None: they are the
                networks.
        """
        fc1_weight, fc1_bias, fc2_weight, fc2_bias = self._parts(merging)
        relu = self.activation in (F.relu, torch.relu)
        hidden = grouped_linear(x, fc1_weight, fc1_bias, groups, relu)
        hidden = self.dropout_module(hidden if relu else self.activation(hidden))
        return grouped_linear(hidden, fc2_weight, fc2_bias, groups)

    def _parts(self, merging: Tensor | None) -> list[Tensor]:
        """The parts of all networks, each (P, …), in the order of ``PARTS``."""
        stacked: list[Tensor] = [self.fc1_weight, self.fc1_bias, self.fc2_weight, self.fc2_bias]
        if self.grad_scale != 1:
            stacked = [_ScaledGradient.apply(each, self.grad_scale) for each in stacked]  # type: ignore[no-untyped-call]
        if self.bits:
            stacked = [self._rounded(part, tensor) for part, tensor in zip(PARTS, stacked)]
        if merging is None:
            return stacked
        with full_precision(merging.device):
            weights = merging.to(self.fc1_weight.dtype)
            return [merge(part, weights) for part in stacked]

    def _rounded(self, part: str, tensor: Tensor) -> Tensor:
        return round_weights(tensor, self.bits) if self.bits and part.endswith("weight") else tensor

    @torch.no_grad()
    def scale_(self, factor: float | Tensor) -> None:
        """Multiply all parameters by a factor."""
        for parameter in self.parameters():
            parameter.mul_(factor)

    def scale_gradients(self, factor: float) -> None:
        """From now on, multiply the gradients of all parameters by a factor (Artetxe et al. 2022, 2112.10684)."""
        self.grad_scale = factor

    def fold(self, experts: Sequence[int], weights: Tensor) -> FeedForward:
        """The one network that computes Σ_k weight_k · expert_k(x), without dropout.

        Args:
            experts: K of the experts.
            weights: (K,) fp32.
        """
        parts = {}
        for part in PARTS:
            stacked: Tensor = getattr(self, part.replace(".", "_"))
            chosen = [self._rounded(part, stacked[each]) for each in experts]
            parts[part.replace(".", "_")] = fold(part, chosen, weights).to(stacked.dtype)
        return FeedForward(**parts, activation=self.activation)

    def merge(self, weights: Tensor) -> FeedForward:
        """The one network whose parameters are Σ_e weight_e · parameter_e, without dropout.

        Args:
            weights: (E,) fp32, of all experts.
        """
        names = [part.replace(".", "_") for part in PARTS]
        parts = {name: part[0] for name, part in zip(names, self._parts(weights.unsqueeze(0)))}
        return FeedForward(**parts, activation=self.activation)
