"""Transformer layers with an MoE layer, or with low-rank language matrices, or both."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import torch
from fairseq.modules import FairseqDropout
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from taskmoe_plugin.moe import CurrentLanguages, FeedForward, GateRecord, Languages, MoELayer, Routing, Tokens


def _nothing(x: Tensor) -> Tensor:
    return x


class LayerBatch(threading.local):
    """What a layer is told of a batch, and what it leaves. Each thread has its own, so that several may use a model.

    Attributes:
        routing: what an MoE layer does with the batch, see ``RoutedLayer``.
        record: what the last pass leaves for losses and statistics, if it used an MoE layer.
    """

    routing: Routing | Tokens | FeedForward | None = None
    record: GateRecord | None = None

    def __reduce__(self) -> tuple[type[LayerBatch], tuple[()]]:
        return LayerBatch, ()  # the copy of a layer is in no batch


class StackLayer(nn.Module):
    """Mixed into fairseq's layers: one that its stack tells about a batch, for which their ``forward`` has no argument.

    Attributes:
        batch: what it is told.
        languages: of the batch, where the stack has low-rank language matrices.
        checkpointed: whether activations are computed again in the backward pass instead of kept.
    """

    languages: CurrentLanguages | None = None

    def __init__(self, cfg: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(cfg, *args, **kwargs)
        self.batch = LayerBatch()
        self.checkpointed: bool = cfg.checkpoint_activations

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.checkpointed and self.training and torch.is_grad_enabled()):
            return super().forward(*args, **kwargs)
        languages = self.languages and self.languages.now
        routing = self.batch.routing
        output, self.batch.record = checkpoint(self._run, languages, routing, *args, use_reentrant=False, **kwargs)
        return output

    def _run(self, languages: Languages | None, routing: Any, *args: Any, **kwargs: Any) -> Any:
        # What the stack has told is an argument: in the backward pass, the stack has forgotten it.
        batch = self.batch
        before, batch.routing = batch.routing, routing
        try:
            with nullcontext() if self.languages is None else self.languages.set(languages):
                return super().forward(*args, **kwargs), batch.record
        finally:
            batch.routing, batch.record = before, None


class RoutedLayer(StackLayer):
    """Puts an MoE layer where fairseq's layers build the feed-forward network ``fc2(dropout(activation(fc1(x))))``.

    ``fc1`` is the whole network, and what follows it does nothing, so that fairseq's own ``forward`` serves: attention,
    residuals, norms and incremental states stay its business. A stack sets ``batch.routing`` of each of its layers
    before they run: the batch's routing, its tokens where this layer's router decides, or the one network that all of
    its tokens use.
    """

    moe: MoELayer

    def build_fc1(self, *args: Any) -> Any:
        return self._feed_forward

    def build_fc2(self, *args: Any) -> Any:
        return _nothing

    def install(self, moe: MoELayer) -> None:
        """Take the MoE layer in; to be called after fairseq's ``__init__``."""
        self.moe = moe
        # fairseq's, so that --retain-dropout reaches it.
        moe.experts.dropout_module = FairseqDropout(moe.experts.dropout_module.p, module_name=type(self).__name__)
        self.activation_fn = _nothing
        self.activation_dropout_module = nn.Identity()

    def _feed_forward(self, x: Tensor) -> Tensor:
        batch = self.batch
        if isinstance(batch.routing, FeedForward):
            return batch.routing(x)
        if batch.routing is None:
            raise RuntimeError("an MoE layer was run outside its stack, which routes the batch")
        output, batch.record = self.moe(x, batch.routing)
        return output  # type: ignore[no-any-return]


class TaskMoEEncoderLayer(RoutedLayer, TransformerEncoderLayerBase):
    """An encoder layer with an MoE layer."""

    def __init__(self, cfg: Any, moe: MoELayer, return_fc: bool = False) -> None:
        super().__init__(cfg, return_fc=return_fc)
        self.install(moe)


class TaskMoEDecoderLayer(RoutedLayer, TransformerDecoderLayerBase):
    """A decoder layer with an MoE layer."""

    def __init__(self, cfg: Any, moe: MoELayer, no_encoder_attn: bool = False) -> None:
        super().__init__(cfg, no_encoder_attn)
        self.install(moe)


class LowRankEncoderLayer(StackLayer, TransformerEncoderLayerBase):
    """An encoder layer without MoE layer, which gets low-rank language matrices."""


class LowRankDecoderLayer(StackLayer, TransformerDecoderLayerBase):
    """A decoder layer without MoE layer, which gets low-rank language matrices."""
