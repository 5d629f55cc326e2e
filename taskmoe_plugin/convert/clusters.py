"""Balanced clustering of the hidden units of a feed-forward network (MoEfication, Zhang et al. 2022, parameter
clustering split)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

ROUNDS = 10


def balanced_clusters(fc1_weight: Tensor, count: int, seed: int = 0) -> Tensor:
    """(E, F/E) int64, ascending: the hidden units of each of E blocks of one size.

    Units whose incoming weights point the same way are active for the same inputs: k-means over the rows of fc1, made
    to length 1, of which each round assigns the units to the centres at the least total squared distance with which all
    clusters have one size, as constrained k-means does.

    Args:
        fc1_weight: (F, C).
        count: E, a divisor of F.
        seed: of the first centres.
    """
    rows = F.normalize(fc1_weight.detach().float(), dim=1).numpy()
    size = len(rows) // count
    centres = KMeans(count, n_init=1, random_state=seed).fit(rows).cluster_centers_
    owner = np.full(len(rows), -1)
    for _ in range(ROUNDS):
        distance = np.square(centres).sum(axis=1) - 2 * rows @ centres.T
        _, place = linear_sum_assignment(np.repeat(distance, size, axis=1))
        before, owner = owner, place // size
        if (before == owner).all():
            break
        centres = np.stack([rows[owner == cluster].mean(axis=0) for cluster in range(count)])
    return torch.from_numpy(owner.argsort(kind="stable").reshape(count, size))
