"""The decoder: fairseq's Transformer decoder with MoE layers."""

from __future__ import annotations

from typing import Any, cast

import torch
from fairseq.models.transformer.transformer_decoder import TransformerDecoderBase
from torch import Tensor, nn

from taskmoe_plugin.models.layers import LowRankDecoderLayer, TaskMoEDecoderLayer
from taskmoe_plugin.models.routed_stack import RoutedStack, StackRouting
from taskmoe_plugin.moe import Languages

# Among the incremental states of a batch that is being translated: the networks of its only task, and what has been
# found out of its languages.
FOLDED = "taskmoe.folded"
LANGUAGES = "taskmoe.languages"


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


def _language_ids(encoder_out: dict[str, list[Any]]) -> tuple[Tensor | None, Tensor | None]:
    source, target = next(iter(encoder_out["lang_ids"]), (None, None))
    return source, target


class TaskMoEDecoder(RoutedStack, TransformerDecoderBase):
    """Transformer decoder of which every ``--decoder-moe-freq``-th layer is an MoE layer.

    With sentence routing it routes by the source sentence (the mean of the encoder's output): the mean of its own
    tokens would tell a position of the ones that follow it, and change as decoding goes on.

    The second value it returns carries, under ``moe``, the records of the MoE layers of both stacks.
    """

    def __init__(self, cfg: Any, dictionary: Any, embed_tokens: nn.Embedding, no_encoder_attn: bool = False) -> None:
        self.prepare(cfg, "decoder")
        super().__init__(cfg, dictionary, embed_tokens, no_encoder_attn)
        self.build_tasks()

    def build_decoder_layer(self, cfg: Any, no_encoder_attn: bool = False) -> nn.Module:
        index = self.next_layer()
        if self.moe_config.is_moe_layer(index):
            layer = TaskMoEDecoderLayer(cfg, self.moe_config.build_layer(index), no_encoder_attn)
            self.routed_layers.append(layer)
            return self.complete(layer, cfg)
        cfg = self.moe_config.dense_layer(cfg, index)
        if self.low_rank is not None:
            return self.complete(LowRankDecoderLayer(cfg, no_encoder_attn), cfg)
        return super().build_decoder_layer(cfg, no_encoder_attn)  # type: ignore[no-any-return]

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
        routing = self._route(prev_output_tokens, encoder_out, incremental_state)
        with self.routed(routing, self._languages(encoder_out, incremental_state)) as records:
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

    def _route(
        self, tokens: Tensor, encoder_out: dict[str, list[Any]], incremental_state: dict[str, Any] | None
    ) -> StackRouting:
        if incremental_state is not None:
            if self.moe_config.group is not None:
                self._is_anyone_decoding(here=True)
            elif FOLDED in incremental_state:
                return cast(StackRouting, incremental_state[FOLDED])
            tokens = tokens[:, -1:]
        sentence = None
        if self.moe_config.routing == "sentence" and self.routed_layers:
            sentence = mean_of_source(encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"][0])
        padding = next(iter(encoder_out.get("target_padding", ())), tokens.eq(self.padding_idx))
        routing = self.route(padding, *_language_ids(encoder_out), any(encoder_out["filler"]), sentence)
        if incremental_state is not None and routing.is_folded:
            incremental_state[FOLDED] = routing
        return routing

    def _languages(
        self, encoder_out: dict[str, list[Any]], incremental_state: dict[str, Any] | None
    ) -> Languages | None:
        if self.low_rank is None:
            return None
        if incremental_state is None:
            return self.languages(*_language_ids(encoder_out))
        known: Languages | None = incremental_state.get(LANGUAGES)
        if known is None or known.pair is None:
            # Rows of several pairs are in another order by now.
            known = self.languages(*_language_ids(encoder_out), look=known is None)
            incremental_state[LANGUAGES] = known
        return known

    @torch.no_grad()
    def wait_for_others(self) -> None:
        """After a batch has been translated: take part, without tokens, in the steps of processes that still decode.

        Only where experts are spread; a collective.
        """
        if self.moe_config.group is None:
            return
        device = self.embed_tokens.weight.device
        padding = torch.ones(1, 1, dtype=torch.bool, device=device)
        lang_id = torch.zeros(1, dtype=torch.int64, device=device)
        x = torch.zeros(1, 1, self.moe_config.width, device=device)
        while self._is_anyone_decoding(here=False):
            for layer, routing in zip(self.moe_layers, self.route(padding, lang_id, lang_id, sentence=x[0]).layers):
                layer(x.to(layer.experts.fc1_bias.dtype), routing)

    def _is_anyone_decoding(self, here: bool) -> bool:
        group = self.moe_config.group
        assert group is not None
        return bool(group.sum(torch.tensor(int(here), device=self.embed_tokens.weight.device)))
