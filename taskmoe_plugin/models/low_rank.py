"""Low-rank language matrices in fairseq's Transformer layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn
from torch.nn import functional as F

from taskmoe_plugin.moe import CurrentLanguages, LowRankLinear

ATTENTION = ("self_attn", "encoder_attn")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
FEED_FORWARD = ("fc1", "fc2")
# What the matrices of a linear map are called, beside its weight.
TENSORS = ".low_rank_source", ".low_rank_target"


def add_missing(state: dict[str, Any], fresh: Mapping[str, Tensor]) -> bool:
    """Give a state that has no low-rank matrices those of a new model, with which it computes the same.

    Args:
        state: the tensors by name; changed in place.
        fresh: the initial tensors of the model.

    Returns:
        Whether there was something to do.
    """
    missing = {name: each for name, each in fresh.items() if name.endswith(TENSORS)}
    if any(name.endswith(TENSORS) for name in state):
        return False
    state.update(missing)
    return bool(missing)


class ProjectedAttention(MultiheadAttention):
    """fairseq's attention, which calls its projections where fairseq's hands their weights to PyTorch.

    ``skip_embed_dim_check`` has fairseq's own ``forward`` call them in all other cases.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        key_padding_mask: Tensor | None = None,
        incremental_state: dict[str, Any] | None = None,
        need_weights: bool = True,
        static_kv: bool = False,
        attn_mask: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """See fairseq's; its other arguments ask for attention weights."""
        if incremental_state is not None or static_kv or need_weights or any(others.values()):
            return super().forward(  # type: ignore[no-any-return]
                query, key, value, key_padding_mask, incremental_state, need_weights, static_kv, attn_mask, **others
            )
        q, k, v = (
            projection(x).unflatten(2, (self.num_heads, self.head_dim)).permute(1, 2, 0, 3)
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        mask = None if attn_mask is None else attn_mask.to(q.dtype)
        if key_padding_mask is not None:
            padding = q.new_zeros(key_padding_mask.shape).masked_fill(key_padding_mask.bool(), -torch.inf)
            mask = padding[:, None, None] if mask is None else mask + padding[:, None, None]
        dropping = self.training or self.dropout_module.apply_during_inference
        attended = F.scaled_dot_product_attention(q, k, v, mask, self.dropout_module.p if dropping else 0.0)
        return self.out_proj(attended.permute(2, 0, 1, 3).flatten(2)), None


class LowRank:
    """Gives the layers of one stack low-rank language matrices.

    The initial values are drawn apart, so that everything else begins as in a model without them.

    Args:
        rank: R.
        languages: L.
        stack: 0 or 1, for numbers of its own.
    """

    def __init__(self, rank: int, languages: int, stack: int) -> None:
        self.rank = rank
        self.languages = languages
        self.current = CurrentLanguages()
        self._seed = torch.initial_seed() + 1 + stack

    def install(self, layer: Any) -> None:
        """Put the matrices into all linear maps of attention and of a feed-forward network that has no experts."""
        # No state of the stack: a generator cannot be copied with a model.
        generator = torch.Generator().manual_seed(self._seed % 2**63)
        self._seed += 2
        for name in ATTENTION:
            attention = getattr(layer, name, None)
            if attention is None:
                continue
            # The same state, another forward.
            attention.__class__ = ProjectedAttention
            attention.skip_embed_dim_check = True
            self._replace(attention, PROJECTIONS, generator)
        self._replace(layer, FEED_FORWARD, generator)

    def _replace(self, module: nn.Module, names: tuple[str, ...], generator: torch.Generator) -> None:
        for name in names:
            linear = getattr(module, name)
            if isinstance(linear, nn.Linear):
                setattr(module, name, LowRankLinear(linear, self.languages, self.rank, self.current, generator))
