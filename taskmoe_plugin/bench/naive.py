"""fairscale's MoE layer, what a straightforward implementation does: all experts compute, whatever tokens choose."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.models.layers import RoutedLayer
from taskmoe_plugin.moe import Experts, FeedForward, MoELayer, TokenRouter


def start_group() -> None:
    """Make this process a group of one, which fairscale's layer needs to exchange tokens within."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]


def make_naive(model: nn.Module) -> None:
    """Let fairscale's layer do the work of all MoE layers of a model that routes by token, in fp32.

    Raises:
        UsageError: a token does not use two experts.
    """
    start_group()
    for layer in (each for each in model.modules() if isinstance(each, RoutedLayer)):
        layer.moe = NaiveLayer(layer.moe)  # type: ignore[assignment]


class NaiveLayer(nn.Module):
    """fairscale's ``MOELayer`` with the gate and the experts of one of ours.

    It multiplies by masks of (tokens, experts, capacity), and each expert computes as many rows as it has capacity. It
    takes multiples of E tokens alone, so that a decoding step of few sentences is filled up to E.

    Args:
        layer: routes by token; its weights are used as they are, in memory too.

    Raises:
        UsageError: a token does not use two experts.
    """

    def __init__(self, layer: MoELayer) -> None:
        from fairscale.nn.moe import MOELayer, Top2Gate

        super().__init__()
        assert isinstance(layer.router, TokenRouter)
        if layer.router.top_k != 2:
            raise UsageError("--systems naive: fairscale's gate gives a token two experts; give --top-k 2")
        self.count = layer.num_experts
        gate = Top2Gate(layer.experts.fc1_weight.size(2), self.count)
        gate.wg = layer.router.gate
        self.layer = MOELayer(gate, nn.ModuleList(_Expert(layer.experts, expert) for expert in range(self.count)))

    def forward(self, x: Tensor, routing: object) -> tuple[Tensor, None]:
        """Map (T, B, C) to (T, B, C); padding is computed like any other token."""
        flat = x.reshape(-1, 1, x.size(-1))
        filled = F.pad(flat, (0, 0, 0, 0, 0, -flat.size(0) % self.count))
        return self.layer(filled)[: flat.size(0)].view_as(x), None


class _Expert(nn.Module):
    def __init__(self, experts: Experts, index: int) -> None:
        super().__init__()
        parts = {name: getattr(experts, name)[index] for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")}
        self.network = FeedForward(**parts, activation=experts.activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)
