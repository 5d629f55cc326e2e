"""An MoE layer on a device, routed as a stack routes it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from taskmoe_plugin.moe import Routing, Tokens
from tests.helpers.moe import make_layer, route_tasks

WIDTH, EXPERTS, TASKS, ROWS, LENGTH = 16, 8, 3, 32, 4


class LayerOnDevice:
    """A layer and its input, of which the host knows what a stack knows: the tokens of each expert of a task.

    Args:
        kind: ``task``, ``static``, ``merged``, ``sentence`` or ``token``.
        dtype: of parameters and activations.
        padded: whether there is padding.
        device: where all of it is.
    """

    def __init__(self, kind: str, dtype: torch.dtype, padded: bool, device: torch.device) -> None:
        # Smooth: rounding errors may decide on which side of a kink a value is.
        layer = make_layer(kind, EXPERTS, tasks=TASKS, activation=F.gelu, ffn_width=2 * WIDTH, width=WIDTH)
        layer.to(device, dtype)
        self.moe, self.gates = layer.moe, layer.gates
        padding = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
        padding[0, 0] = padded
        self.tokens = Tokens.from_padding(padding.to(device), ROWS * LENGTH - int(padded))
        self.unit = self.tokens.row % TASKS
        self.counts = None
        if kind == "merged":
            self.counts = self.unit.bincount(minlength=TASKS).tolist()
        elif self.gates is not None:
            owners = self.gates().experts[0].index_select(0, self.unit)
            self.counts = owners.flatten().bincount(minlength=EXPERTS).tolist()
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(LENGTH, ROWS, WIDTH, generator=generator).to(device, dtype).requires_grad_()

    def routing(self) -> Routing | Tokens:
        """What the layer does with the batch."""
        if self.gates is None:
            return self.tokens
        return route_tasks(self.gates, self.unit, self.tokens, self.counts)

    def step(self) -> Tensor:
        """One pass forward and backward; returns the output."""
        output, _ = self.moe(self.x, self.routing())
        output.backward(torch.ones_like(output))
        return output.detach()  # type: ignore[no-any-return]
