"""Which of several processes holds which expert, and how many assignments each has for each."""

from __future__ import annotations

import numpy as np
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


def share_capacity_at_random(choices: Tensor, capacity: int, process: int) -> tuple[Tensor, Tensor]:
    """``share_capacity``, but those of one choice in random order, in which the processes' are mixed.

    How many of each process are served is drawn from a multivariate hypergeometric distribution, seeded with what all
    processes know: all of them draw the same. Which of its own they are is for each process to draw.
    """
    numbers = np.random.default_rng(choices.flatten().tolist())
    each = choices.numpy()
    served, left = np.zeros_like(each), np.full(each.shape[2], capacity)
    for choice, expert in np.ndindex(*each.shape[1:]):
        own = each[:, choice, expert]
        count = min(int(left[expert]), int(own.sum()))
        served[:, choice, expert] = own if count == own.sum() else numbers.multivariate_hypergeometric(own, count)
        left[expert] -= count
    kept, mine = torch.from_numpy(served), choices[process]
    return kept.sum(1), capacity - kept[process] - (mine.cumsum(0) - mine)
