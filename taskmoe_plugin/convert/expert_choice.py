"""Which experts of a layer to keep, by how its tokens choose among them.

Memory-efficient NLLB-200: Language-specific Expert Pruning (Koishekenov et al. 2023); utilisation from Scalable and
Efficient MoE Training for Multitask Multilingual Models (Z-code M3, Kim et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from taskmoe_plugin.convert.activity import Activity


def importance(activity: Activity) -> Tensor:
    """(E,): top1(e) · exp(conf(e)), which the paper finds best."""
    return activity.first * activity.confidence.exp()


# What an expert is worth in a layer, (E,).
METRICS: dict[str, Callable[[Activity], Tensor]] = {
    "importance": importance,
    "activity": lambda activity: activity.first,
    "utilization": lambda activity: activity.chosen,
}


def best(worth: Tensor, count: int) -> tuple[int, ...]:
    """The ``count`` experts that are worth most, ascending; of equals the first (the paper's "fixed per layer").

    Args:
        worth: (E,).
        count: at most E.
    """
    return tuple(sorted(worth.argsort(descending=True, stable=True)[:count].tolist()))


def best_beyond(worth: Tensor, threshold: float, least: int) -> tuple[int, ...]:
    """The experts of a layer by one threshold for all layers, ascending (the paper's "global threshold").

    With the worths of a layer made to sum to 1, its ``least`` best are kept, and of the others the best, as long as
    their sum is below the threshold: 0 keeps only these, 1 all that are worth anything.

    Args:
        worth: (E,), not negative.
        threshold: from 0 to 1.
        least: at least 1 and at most E; 4 in the paper.
    """
    share, order = (worth.double() / worth.double().sum()).sort(descending=True, stable=True)
    others = share[least:].cumsum(0) < threshold
    kept = torch.cat([torch.ones(least, dtype=torch.bool), others & (share[least:] > 0)])
    return tuple(sorted(order[kept].tolist()))
