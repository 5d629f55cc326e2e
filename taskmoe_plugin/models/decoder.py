"""The decoder: fairseq's Transformer decoder with MoE layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fairseq.distributed import fsdp_wrap
from fairseq.models.transformer.transformer_decoder import TransformerDecoderBase
from torch import Tensor, nn

from taskmoe_plugin.models.layers import TaskMoEDecoderLayer
from taskmoe_plugin.models.stack import StackConfig, StackState, TaskIndex
from taskmoe_plugin.moe import RoutedBatch


def mean_of_source(encoder_out: Tensor, padding: Tensor) -> Tensor:
    """Mean of the encoder's output over the tokens of each source sentence.

    Args:
        encoder_out: (T, B, C).
        padding: (B, T) bool, True at padding.

    Returns:
        (B, C) fp32.
    """
    kept = padding.logical_not().t().unsqueeze(2)
    total = encoder_out.float().masked_fill(~kept, 0.0).sum(dim=0)
    return total / kept.sum(dim=0).clamp(min=1)


class TaskMoEDecoder(TransformerDecoderBase):
    """Transformer decoder of which every ``--decoder-moe-freq``-th layer is an MoE layer.

    With sentence routing it routes by the source sentence (the mean of the encoder's output): the mean of its own
    tokens would tell a position of the ones that follow it, and change as decoding goes on.

    The second value it returns carries, under ``moe``, the records of the MoE layers of both stacks.
    """

    def __init__(self, cfg: Any, dictionary: Any, embed_tokens: nn.Embedding, no_encoder_attn: bool = False) -> None:
        # fairseq builds the layers in its __init__, one call each and without an index.
        self.moe_config = StackConfig.from_args(cfg, "decoder")
        self.moe_state = StackState()
        self._built = 0
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn)
        self.tasks = TaskIndex.of(self.moe_config)

    def build_decoder_layer(self, cfg: Any, no_encoder_attn: bool = False) -> nn.Module:
        index, self._built = self._built, self._built + 1
        if not self.moe_config.is_moe_layer(index):
            cfg = self.moe_config.dense_layer(cfg, index)
            return super().build_decoder_layer(cfg, no_encoder_attn)  # type: ignore[no-any-return]
        layer = TaskMoEDecoderLayer(cfg, self.moe_config, self.moe_state, index, no_encoder_attn)
        return fsdp_wrap(layer, min_num_params=cfg.min_params_to_wrap)  # type: ignore[no-any-return]

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Any]],
        incremental_state: dict[str, Any] | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Features (B, T, C) of target prefixes (B, T), and a dictionary of whatever else the model has to tell."""
        new_tokens = prev_output_tokens if incremental_state is None else prev_output_tokens[:, -1:]
        batch = self._route(new_tokens, encoder_out)
        with self.moe_state.passing(batch) as records:
            x, extra = super().extract_features(
                prev_output_tokens,
                encoder_out,
                incremental_state,
                full_context_alignment,
                alignment_layer,
                alignment_heads,
            )
        extra["moe"] = {"encoder": encoder_out["moe"], "decoder": records}
        return x, extra

    def _route(self, prev_output_tokens: Tensor, encoder_out: dict[str, list[Any]]) -> RoutedBatch:
        padding = next(iter(encoder_out.get("target_padding", ())), prev_output_tokens.eq(self.padding_idx))
        tokens = self.moe_config.tokens(padding, any(encoder_out["filler"]))
        if self.tasks:
            source, target = (next(iter(encoder_out[name]), None) for name in ("src_lang_id", "tgt_lang_id"))
            return self.tasks.route(tokens, source, target, self.moe_state.task_routers())
        batch = RoutedBatch(tokens)
        if self.moe_config.routing == "sentence":
            source = mean_of_source(encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"][0])
            batch = replace(batch, sentence=source)
        return batch
