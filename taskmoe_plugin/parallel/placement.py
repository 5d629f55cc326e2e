"""Which of several processes holds which expert, and how many assignments each has for each."""

from __future__ import annotations

import torch
from torch import Tensor


def held_by(process: int, processes: int, experts: int) -> range:
    """The experts, by global index, that one of several processes holds; ``processes`` divides ``experts``."""
    each = experts // processes
    return range(process * each, (process + 1) * each)


def count_assignments(experts: Tensor, num_experts: int) -> Tensor:
    """(K, E) int64, how many of N tokens have each expert as each of their choices (N, K)."""
    k = experts.size(1)
    cell = experts + num_experts * torch.arange(k, device=experts.device)
    return torch.bincount(cell.reshape(-1), minlength=k * num_experts).view(k, num_experts)


def share_capacity(choices: Tensor, capacity: int, process: int) -> tuple[Tensor, Tensor]:
    """Serve all processes' assignments as if they were one batch: by choice, then by process, then in their order.

    Args:
        choices: (W, K, E) int64, what ``count_assignments`` gives on every process.
        capacity: most assignments an expert takes.
        process: this process's rank.

    Returns:
        (W, E) int64, the assignments of each process that an expert takes; and (K, E) int64, for each choice, how many
        of other processes' assignments an expert serves before this process's.
    """
    processes, k, experts = choices.shape
    in_turn = choices.transpose(0, 1).reshape(k * processes, experts)
    before = (in_turn.cumsum(0) - in_turn).view(k, processes, experts).transpose(0, 1)
    taken = (capacity - before).clamp(min=0).minimum(choices).sum(1)
    own = choices[process]
    return taken, before[process] - (own.cumsum(0) - own)
