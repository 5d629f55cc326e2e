"""Upcycling: the feed-forward network of a trained dense model becomes experts that compute exactly what it computes.

Sparse Upcycling (Komatsuzaki et al. 2023) gives every expert a copy of the whole network. Granular experts (He et al.
2024, "Upcycling Large Language Models into Mixture of Experts", section 2) have one of K slices of its hidden units,
and every token one expert of each slice. The slices are those of the blocks of ``deal``, which gives each task one
expert of each block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmoe_plugin.moe.gates import block_edges

# Gates that leave all experts nearly the same weight, but to every token one that is the largest.
NEARLY_EVEN = 1e-5


@dataclass(frozen=True)
class Upcycling:
    """How one network becomes the experts of a layer.

    A token's K experts have weights that sum to S, and are all equal where they have slices. With fc2 multiplied by n/S
    and its bias by 1/S, for n slices or n = 1 for copies, their weighted sum is what the network computes.

    Attributes:
        experts: E.
        top_k: K.
        slices: n, K or 1.
        total: S, the sum of the weights of a token's experts.
    """

    experts: int
    top_k: int
    slices: int
    total: float

    def parts(self, part: str, dense: Tensor) -> Iterator[Tensor]:
        """A part of each expert in turn, in the type of the dense one.

        Args:
            part: which, of ``PARTS``.
            dense: this part of the network.
        """
        scale = {"fc2.weight": self.slices / self.total, "fc2.bias": 1 / self.total}.get(part, 1.0)
        return self._dealt(part, dense, scale)

    def gradients(self, part: str, dense: Tensor, power: int = 1) -> Iterator[Tensor]:
        """The mean of a part's gradient, or of its square, for each expert in turn: an optimizer's moment.

        The output of an expert has a weight of S/K, so that the gradient of fc2 is S/K times that of its slice, and
        with fc2 n/S times as large, that of fc1 is n/K times its own.

        Args:
            part: which, of ``PARTS``.
            dense: the moment of the network's.
            power: 2 for a moment of squares.
        """
        scale = self.slices / self.top_k if part.startswith("fc1") else self.total / self.top_k
        return self._dealt(part, dense, scale**power)

    def _dealt(self, part: str, dense: Tensor, scale: float) -> Iterator[Tensor]:
        scaled = dense if scale == 1 else (dense.to(torch.promote_types(dense.dtype, torch.float32)) * scale)
        scaled = scaled.to(dense.dtype)
        slices = [scaled] * self.slices
        if part != "fc2.bias":
            slices = list(scaled.chunk(self.slices, dim=1 if part == "fc2.weight" else 0))
        for own, size in zip(slices, block_edges(self.experts, self.slices).diff().tolist()):
            yield from [own] * size

    def router(self, weight: Tensor) -> Tensor:
        """The weight (E, C) of a gate that scores tokens or sentences, so that the experts have the weights they need.

        With slices, the rows of all blocks are those of the first: a token's best expert has a twin in each block, with
        the same score. A single expert has its probability as weight, which must be 1/E whatever the token.

        Args:
            weight: (E, C), initial values.
        """
        if self.top_k == 1:
            return weight * NEARLY_EVEN
        if self.slices == 1:
            return weight
        return weight[: self.experts // self.slices].repeat(self.slices, 1)
