"""Folding: the experts of a task merged into one feed-forward network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class FeedForward:
    """The weights of ``fc2(activation(fc1(x)))``.

    Attributes:
        fc1_weight, fc1_bias: (F, C) and (F,).
        fc2_weight, fc2_bias: (C, F) and (C,).
    """

    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor

    @property
    def width(self) -> int:
        """F, the hidden width."""
        return self.fc1_bias.numel()


def fold(experts: Sequence[FeedForward], weights: Sequence[float]) -> FeedForward:
    """One feed-forward network that computes Σ_e weight_e · expert_e(x), exact up to rounding.

    The activation works on each hidden unit alone, so the experts stand side by side: rows of fc1 concatenated, columns
    of fc2 scaled by the gate weight and concatenated, fc2's bias Σ weight_e · bias_e. fc2 is made in fp32, because
    scaling would round half precision.

    Args:
        experts: the K experts of a task, of any widths.
        weights: their gate weights.
    """
    columns = [expert.fc2_weight.float() * weight for expert, weight in zip(experts, weights)]
    biases = [expert.fc2_bias.float() * weight for expert, weight in zip(experts, weights)]
    return FeedForward(
        torch.cat([expert.fc1_weight for expert in experts]),
        torch.cat([expert.fc1_bias for expert in experts]),
        torch.cat(columns, dim=1),
        torch.stack(biases).sum(dim=0),
    )


def pad(ffn: FeedForward, width: int) -> FeedForward:
    """The same function with ``width`` hidden units; the added ones have zero weights, so they reach no output.

    Args:
        ffn: a network of at most this width.
        width: the width wanted.
    """
    extra = width - ffn.width
    return FeedForward(
        F.pad(ffn.fc1_weight, (0, 0, 0, extra)),
        F.pad(ffn.fc1_bias, (0, extra)),
        F.pad(ffn.fc2_weight, (0, extra)),
        ffn.fc2_bias,
    )
