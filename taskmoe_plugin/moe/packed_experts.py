"""Experts whose weights stay in few bits at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskmoe_plugin.moe.experts import Experts, FeedForward
from taskmoe_plugin.moe.fold import PARTS, fold, merge
from taskmoe_plugin.moe.gates import full_precision
from taskmoe_plugin.moe.groups import Groups
from taskmoe_plugin.moe.packed_products import Product, packed_product
from taskmoe_plugin.moe.quantize import Packed


class PackedExperts(nn.Module):
    """As ``Experts``, for translating: a product unpacks what it needs, or takes weights in few bits as they are.

    PyTorch has products with 4-bit and 8-bit weights for CPUs. They compute in bf16; where they are missing, or do not
    take a shape, the weights of an expert are made floating point for each product.

    Args:
        experts: whose place they take; of these the biases are kept.
        packed: the weights of fc1 and fc2 by part, (E, …).
    """

    def __init__(self, experts: Experts, packed: Mapping[str, Packed]) -> None:
        super().__init__()
        self.activation = experts.activation
        self.dropout_module = experts.dropout_module
        self.fc1_bias = experts.fc1_bias
        self.fc2_bias = experts.fc2_bias
        self.weights = nn.ModuleDict({part.split(".")[0]: _PackedMatrices(each) for part, each in packed.items()})

    def __len__(self) -> int:
        """The number of experts."""
        return self.fc1_bias.size(0)

    def forward(self, x: Tensor, groups: Groups, merging: Tensor | None = None) -> Tensor:
        """Map (A, C) to (A, C); the arguments are those of ``Experts``."""
        outputs, start = torch.empty_like(x), 0
        for network, end in enumerate(groups.ends.tolist()):
            if end > start:
                rows = x[start:end]
                if merging is None:
                    outputs[start:end] = self._expert(rows, network)
                else:
                    outputs[start:end] = self.merge(merging[network])(rows, self.dropout_module)
            start = end
        return outputs

    def _expert(self, x: Tensor, expert: int) -> Tensor:
        hidden = self.activation(self.weights["fc1"](x, expert) + self.fc1_bias[expert])
        return self.weights["fc2"](self.dropout_module(hidden), expert) + self.fc2_bias[expert]  # type: ignore[no-any-return]

    def _part(self, part: str, expert: int) -> Tensor:
        name, kind = part.split(".")
        if kind == "weight":
            return self.weights[name].packed(expert).dequantize().to(self.fc1_bias.dtype)  # type: ignore[operator, no-any-return]
        return getattr(self, f"{name}_bias")[expert]  # type: ignore[no-any-return]

    def fold(self, experts: Sequence[int], weights: Tensor) -> FeedForward:
        """See ``Experts.fold``."""
        parts = {part: fold(part, [self._part(part, each) for each in experts], weights) for part in PARTS}
        return self._network(parts)

    def merge(self, weights: Tensor) -> FeedForward:
        """See ``Experts.merge``."""
        with full_precision(weights.device):
            row = weights.unsqueeze(0).to(self.fc1_bias.dtype)
            parts = {
                part: merge(torch.stack([self._part(part, each) for each in range(len(self))]), row)[0]
                for part in PARTS
            }
        return self._network(parts)

    def _network(self, parts: Mapping[str, Tensor]) -> FeedForward:
        own = {part.replace(".", "_"): each.to(self.fc1_bias.dtype) for part, each in parts.items()}
        return FeedForward(**own, activation=self.activation)


class _PackedMatrices(nn.Module):
    """The matrices of all experts, with which rows are multiplied."""

    codes: Tensor
    scale: Tensor

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.bits, self.columns = packed.bits, packed.columns
        self.register_buffer("codes", packed.codes, persistent=False)
        self.register_buffer("scale", packed.scale, persistent=False)
        self._products: dict[int, Product | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_products": {}}  # they are functions, and are made anew

    def packed(self, expert: int) -> Packed:
        """The matrix of an expert as it is."""
        return Packed(self.codes[expert], self.scale[expert].float(), self.bits, self.columns)

    def forward(self, x: Tensor, expert: int) -> Tensor:
        """Multiply rows (A, C) with the matrix of an expert."""
        product = None
        if not self.codes.is_cuda:
            # Laid out as the product wants it when it is first needed: where experts are folded, it is not.
            if expert not in self._products:
                self._products[expert] = packed_product(self.packed(expert))
            product = self._products[expert]
        return product(x) if product else F.linear(x, self.packed(expert).dequantize().to(x.dtype))
