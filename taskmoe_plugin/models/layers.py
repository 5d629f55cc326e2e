"""Transformer layers whose feed-forward network is an MoE layer."""

from __future__ import annotations

from typing import Any

from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn

from taskmoe_plugin.models.stack import StackConfig, StackState
from taskmoe_plugin.moe import MoELayer


class _MoEFeedForward(nn.Module):
    """Puts an MoE layer where fairseq's layers compute ``fc2(dropout(activation_fn(fc1(x))))``.

    fc1, fc2 and the dropout are made to do nothing, and the activation function to run the MoE layer, so that
    fairseq's own ``forward`` serves: attention, residuals, norms and incremental states stay its business.
    """

    moe: MoELayer

    def build_fc1(self, *args: Any) -> nn.Module:
        return nn.Identity()

    def build_fc2(self, *args: Any) -> nn.Module:
        return nn.Identity()

    def _install(self, config: StackConfig, state: StackState, index: int) -> None:
        self.moe = config.build_layer(index)
        state.layers.append(self.moe)
        self.stack_state = state
        self.activation_fn = self._feed_forward
        self.activation_dropout_module = nn.Identity()

    def _feed_forward(self, x: Tensor) -> Tensor:
        if self.stack_state.batch is None:
            raise RuntimeError("an MoE layer was run outside its stack, as activation checkpointing would")
        output, record = self.moe(x, self.stack_state.batch)
        self.stack_state.records.append(record)
        return output  # type: ignore[no-any-return]


class TaskMoEEncoderLayer(_MoEFeedForward, TransformerEncoderLayerBase):
    """An encoder layer with an MoE layer."""

    def __init__(self, cfg: Any, config: StackConfig, state: StackState, index: int, return_fc: bool = False) -> None:
        super().__init__(cfg, return_fc=return_fc)
        self._install(config, state, index)


class TaskMoEDecoderLayer(_MoEFeedForward, TransformerDecoderLayerBase):
    """A decoder layer with an MoE layer."""

    def __init__(
        self, cfg: Any, config: StackConfig, state: StackState, index: int, no_encoder_attn: bool = False
    ) -> None:
        super().__init__(cfg, no_encoder_attn)
        self._install(config, state, index)
