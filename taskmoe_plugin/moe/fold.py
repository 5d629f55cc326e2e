"""One feed-forward network ``fc2(activation(fc1(x)))`` of the experts of a task.

Folding gives the network that has the weighted sum of their outputs, merging the one that has that of their weights.

Folding: the activation works on each hidden unit alone, so the experts stand side by side, and Σ_e weight_e ·
expert_e(x) is one network: rows of fc1 concatenated, columns of fc2 scaled by the gate weight and concatenated, fc2's
bias Σ_e weight_e · bias_e; exact up to rounding.

Merging (SMEAR, Muqeeth et al. 2023, section 2.2; CondConv, Yang et al. 2019, section 3): every parameter is
Σ_e weight_e · parameter_e, and the network is as wide as one expert.

Each of the four parts is made without the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

PARTS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
# For each part with a hidden dimension, what F.pad is told to append to it.
_AFTER = {"fc1.weight": (0, 0, 0, 1), "fc1.bias": (0, 1), "fc2.weight": (0, 1)}


def part_shapes(inputs: int, hidden: int) -> dict[str, torch.Size]:
    """The shapes of the parts of a network with ``hidden`` hidden units."""
    shapes = (hidden, inputs), (hidden,), (inputs, hidden), (inputs,)
    return {part: torch.Size(shape) for part, shape in zip(PARTS, shapes)}


def fold(part: str, experts: Sequence[Tensor], weights: Sequence[float] | Tensor) -> Tensor:
    """One part of the folded network. fc2 is made in fp32 or more, because scaling would round half precision.

    Args:
        part: which, of ``PARTS``.
        experts: this part of the K experts of a task, of any widths.
        weights: their gate weights.
    """
    if part.startswith("fc1."):
        return torch.cat(list(experts))
    first = experts[0]
    weight = torch.as_tensor(weights, dtype=torch.promote_types(first.dtype, torch.float32), device=first.device)
    if part == "fc2.bias":
        return (torch.stack(list(experts)) * weight.unsqueeze(1)).sum(dim=0)
    return torch.cat(list(experts), dim=1) * torch.cat([w.expand(each.size(1)) for w, each in zip(weight, experts)])


def merge(stacked: Tensor, weights: Tensor) -> Tensor:
    """(P, …): for each of P networks the weighted sum of a part of the experts.

    Args:
        stacked: (E, …), this part of all experts.
        weights: (P, E), the weights of each network, in the same type.
    """
    return (weights @ stacked.flatten(1)).view(weights.size(0), *stacked.shape[1:])


def pad(part: str, tensor: Tensor, width: int) -> Tensor:
    """A part of the same network with ``width`` hidden units; the added ones have zero weights and reach no output.

    Args:
        part: which, of ``PARTS``.
        tensor: that part of a network of at most this width.
        width: the width wanted.
    """
    if part not in _AFTER:
        return tensor
    extra = width - tensor.size(1 if part == "fc2.weight" else 0)
    return F.pad(tensor, [extra * each for each in _AFTER[part]])
