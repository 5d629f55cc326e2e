"""Blocks of hidden units that belong together."""

from __future__ import annotations

import itertools

import torch
from torch.nn import functional as F

from taskmoe_plugin.convert.clusters import balanced_clusters


def test_units_that_point_the_same_way_are_together_whatever_their_length() -> None:
    torch.manual_seed(0)
    directions = torch.eye(4)
    owner = torch.randperm(20) % 4
    rows = (directions[owner] + 0.05 * torch.randn(20, 4)) * (0.1 + 5 * torch.rand(20, 1))
    blocks = balanced_clusters(rows, 4)
    assert blocks.shape == (4, 5)
    assert sorted(tuple(block.tolist()) for block in blocks) == sorted(
        tuple((owner == each).nonzero().flatten().tolist()) for each in range(4)
    )


def test_blocks_are_as_close_as_blocks_of_one_size_can_be() -> None:
    # Six units near one direction and two near another: blocks of four have to take some from afar.
    torch.manual_seed(1)
    rows = F.normalize(torch.cat([torch.tensor([[1.0, 0.0]]).repeat(6, 1), torch.tensor([[0.0, 1.0]]).repeat(2, 1)])
                       + 0.2 * torch.randn(8, 2), dim=1)  # fmt: skip

    def spread(block: tuple[int, ...]) -> float:
        own = rows[list(block)]
        return float((own - own.mean(dim=0)).square().sum())

    def total(block: tuple[int, ...]) -> float:
        return spread(block) + spread(tuple(set(range(8)) - set(block)))

    found = balanced_clusters(rows, 2)
    best = min(map(total, itertools.combinations(range(8), 4)))
    assert abs(total(tuple(found[0].tolist())) - best) < 1e-5
