"""The encoder: fairseq's Transformer encoder with MoE layers."""

from __future__ import annotations

from typing import Any

import torch
from fairseq.models.transformer.transformer_encoder import TransformerEncoderBase
from torch import Tensor, nn

from taskmoe_plugin.models.layers import LowRankEncoderLayer, TaskMoEEncoderLayer
from taskmoe_plugin.models.routed_stack import RoutedStack


class TaskMoEEncoder(RoutedStack, TransformerEncoderBase):
    """Transformer encoder of which every ``--encoder-moe-freq``-th layer is an MoE layer.

    Its output carries, besides what fairseq's has, ``lang_ids`` for the decoder, source above target (2, B), and, under
    ``moe``, the records of its MoE layers.
    """

    def __init__(self, cfg: Any, dictionary: Any, embed_tokens: nn.Embedding, return_fc: bool = False) -> None:
        self.prepare(cfg, "encoder")
        super().__init__(cfg, dictionary, embed_tokens, return_fc)
        self.build_tasks()

    def build_encoder_layer(self, cfg: Any) -> nn.Module:
        index = self.next_layer()
        if self.moe_config.is_moe_layer(index):
            layer = TaskMoEEncoderLayer(cfg, self.moe_config.build_layer(index), self.return_fc)
            self.routed_layers.append(layer)
            return self.complete(layer, cfg)
        cfg = self.moe_config.dense_layer(cfg, index)
        if self.low_rank is not None:
            return self.complete(LowRankEncoderLayer(cfg, self.return_fc), cfg)
        return super().build_encoder_layer(cfg)  # type: ignore[no-any-return]

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
        src_lang_id: Tensor | None = None,
        tgt_lang_id: Tensor | None = None,
        filler: bool = False,
        target_padding: Tensor | None = None,
    ) -> dict[str, list[Any]]:
        """Encode a batch.

        Args:
            src_tokens: (B, T) int64.
            src_lengths: (B,) int64.
            return_all_hiddens: also return the output of every layer.
            token_embeddings: (B, T, C), in place of the embeddings of ``src_tokens``.
            src_lang_id, tgt_lang_id: (B,) int64, the languages of each row, for task routing and low-rank matrices.
            filler: the batch counts for nothing (see ``RoutedStack.route``).
            target_padding: the decoder's; fairseq's generators give the encoder all of a batch's input.
        """
        routing = self.route(src_tokens.eq(self.padding_idx), src_lang_id, tgt_lang_id, filler)
        with self.routed(routing, self.languages(src_lang_id, tgt_lang_id)) as records:
            out = super().forward(src_tokens, src_lengths, return_all_hiddens, token_embeddings)
        # One tensor, which beam search rearranges in every step.
        out["lang_ids"] = []
        if src_lang_id is not None and tgt_lang_id is not None:
            out["lang_ids"].append(torch.stack([src_lang_id, tgt_lang_id]))
        out["filler"] = [filler]
        out["moe"] = records
        return out  # type: ignore[no-any-return]

    def reorder_encoder_out(self, encoder_out: dict[str, list[Any]], new_order: Tensor) -> dict[str, list[Any]]:
        """Rearrange the rows, those of the language ids too; decoding has no use for the records."""
        out = super().reorder_encoder_out(encoder_out, new_order)
        out["lang_ids"] = [ids.index_select(1, new_order) for ids in encoder_out["lang_ids"]]
        out["filler"] = encoder_out["filler"]
        out["moe"] = []
        return out  # type: ignore[no-any-return]
