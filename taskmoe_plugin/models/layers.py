"""Transformer layers whose feed-forward network is an MoE layer."""

from __future__ import annotations

from typing import Any

import torch
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from taskmoe_plugin.moe import FeedForward, GateRecord, MoELayer, Routing, Tokens


def _nothing(x: Tensor) -> Tensor:
    return x


class RoutedLayer(nn.Module):
    """Puts an MoE layer where fairseq's layers build the feed-forward network ``fc2(dropout(activation(fc1(x))))``.

    ``fc1`` is the whole network, and what follows it does nothing, so that fairseq's own ``forward`` serves: attention,
    residuals, norms and incremental states stay its business. That has no argument for a routing, so a stack sets
    ``routing`` on each of its layers before they run.

    Attributes:
        routing: what to do with the batch: its routing, its tokens where this layer's router decides, or the one
            network that all of its tokens use.
        record: what the last pass leaves for losses and statistics, if it used the MoE layer.
        checkpointed: whether activations are computed again in the backward pass instead of kept.
    """

    moe: MoELayer
    routing: Routing | Tokens | FeedForward | None = None
    record: GateRecord | None = None
    checkpointed: bool = False

    def build_fc1(self, *args: Any) -> Any:
        return self._feed_forward

    def build_fc2(self, *args: Any) -> Any:
        return _nothing

    def install(self, moe: MoELayer, checkpointed: bool) -> None:
        """Take the MoE layer in; to be called after fairseq's ``__init__``."""
        self.moe = moe
        self.checkpointed = checkpointed
        self.activation_fn = _nothing
        self.activation_dropout_module = nn.Identity()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.routing is None:
            raise RuntimeError("an MoE layer was run outside its stack, which routes the batch")
        if self.checkpointed and self.training and torch.is_grad_enabled():
            # The routing is an argument: in the backward pass, the stack has forgotten it.
            output, self.record = checkpoint(self._run, self.routing, *args, use_reentrant=False, **kwargs)
        else:
            output, self.record = self._run(self.routing, *args, **kwargs)
        return output

    def _run(self, routing: Any, *args: Any, **kwargs: Any) -> tuple[Any, GateRecord | None]:
        self._given, self._found = routing, None
        try:
            output = super().forward(*args, **kwargs)
            return output, self._found
        finally:
            self._given = self._found = None

    def _feed_forward(self, x: Tensor) -> Tensor:
        if isinstance(self._given, FeedForward):
            return self._given(x)
        output, self._found = self.moe(x, self._given)
        return output  # type: ignore[no-any-return]


class TaskMoEEncoderLayer(RoutedLayer, TransformerEncoderLayerBase):
    """An encoder layer with an MoE layer."""

    def __init__(self, cfg: Any, moe: MoELayer, return_fc: bool = False) -> None:
        super().__init__(cfg, return_fc=return_fc)
        self.install(moe, cfg.checkpoint_activations)


class TaskMoEDecoderLayer(RoutedLayer, TransformerDecoderLayerBase):
    """A decoder layer with an MoE layer."""

    def __init__(self, cfg: Any, moe: MoELayer, no_encoder_attn: bool = False) -> None:
        super().__init__(cfg, no_encoder_attn)
        self.install(moe, cfg.checkpoint_activations)
