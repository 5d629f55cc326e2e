"""All experts of a layer at once, through grouped matrix products: the host need not know who computes how much."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskmoe_plugin.moe.experts import Expert


def can_group(x: Tensor) -> bool:
    """Whether PyTorch has a kernel for it: bf16, a GPU of compute capability 8.0 or more, and a PyTorch that is new."""
    if not (x.is_cuda and x.dtype == torch.bfloat16 and hasattr(F, "grouped_mm")):
        return False
    return torch.cuda.get_device_capability(x.device) >= (8, 0)


def run_grouped(x: Tensor, experts: Sequence[Expert], ends: Tensor) -> Tensor:
    """The experts' outputs (A, C).

    Args:
        x: (A, C), the inputs of expert 0, then those of expert 1, and so on.
        experts: E experts of one shape.
        ends: (E,) int32, where the inputs of each expert end.
    """
    owner = torch.searchsorted(ends, torch.arange(x.size(0), device=x.device, dtype=ends.dtype), right=True)
    first = experts[0]
    hidden = first.activation(_linears(x, [expert.fc1 for expert in experts], ends, owner))
    hidden = F.dropout(hidden, first.dropout, first.training)
    return _linears(hidden, [expert.fc2 for expert in experts], ends, owner)


def _linears(x: Tensor, linears: Sequence[nn.Linear], ends: Tensor, owner: Tensor) -> Tensor:
    # Copied together here, and not one parameter for all, since most routings use few of them in an update.
    weight = torch.stack([linear.weight for linear in linears]).transpose(1, 2)
    bias = torch.stack([linear.bias for linear in linears])
    return F.grouped_mm(x, weight, offs=ends) + bias.index_select(0, owner)
