"""The tokens of a padded batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from taskmoe_plugin.moe.candidates import Candidates


@dataclass(frozen=True)
class Tokens:
    """The tokens of a padded batch of shape (T, B) that are not padding, in the order of its flattened form.

    Attributes:
        row: (N,) int64, the row (sentence) of each token.
        index: (N,) int64, the place of each token among the T·B flattened ones; None when there is no padding.
        rows: B, the number of rows.
        sentence: (B, C), what a sentence router routes by; None: the mean of the row's tokens at the layer's input.
        candidates: the experts that they may choose in the layer that they are routed by; None: any.
    """

    row: Tensor
    index: Tensor | None
    rows: int
    sentence: Tensor | None = None
    candidates: Candidates | None = None

    @classmethod
    def from_padding(
        cls,
        padding: Tensor,
        count: int | None = None,
        sentence: Tensor | None = None,
    ) -> Tokens:
        """Build from a padding mask.

        Args:
            padding: (B, T) bool, True at padding (the layout of fairseq's masks).
            count: N, where the host knows it; otherwise a GPU must be waited for.
            sentence: (B, C), see ``sentence``.
        """
        batch, length = padding.shape
        row = torch.arange(batch, device=padding.device).repeat(length)
        kept = padding.t().reshape(-1).logical_not()
        if count is None:
            count = int(kept.sum())
        if count == kept.numel():
            return cls(row, None, batch, sentence)
        index = _nonzero(kept, count)
        return cls(row.index_select(0, index), index, batch, sentence)

    @property
    def device(self) -> torch.device:
        """Where the batch is."""
        return self.row.device

    def take(self, flat: Tensor) -> Tensor:
        """The tokens' rows (N, C) of flattened activations (T·B, C)."""
        return flat if self.index is None else flat.index_select(0, self.index)


def _nonzero(mask: Tensor, count: int) -> Tensor:
    # Without the size, PyTorch waits for a GPU to learn it. Its own function for that is not on GPUs in all versions.
    place = torch.where(mask, mask.cumsum(0) - 1, count)
    every = torch.arange(mask.numel(), device=mask.device)
    return torch.empty(count + 1, dtype=torch.int64, device=mask.device).scatter_(0, place, every)[:count]
