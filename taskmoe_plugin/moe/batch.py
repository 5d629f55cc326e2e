"""What a MoE layer has to know of a batch besides its activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from taskmoe_plugin.moe.routers import Gates, TableRouter


@dataclass(frozen=True)
class TokenBatch:
    """The tokens of a padded batch of shape (T, B) that are not padding, in the order of its flattened form.

    Attributes:
        row: (N,) int64, the row (sentence) of each token.
        index: (N,) int64, the place of each token among the T·B flattened ones; None when there is no padding.
        rows: B, the number of rows.
    """

    row: Tensor
    index: Tensor | None
    rows: int

    @classmethod
    def from_padding(cls, padding: Tensor) -> TokenBatch:
        """Build from a bool mask of shape (B, T) that is True at padding (the layout of fairseq's masks)."""
        batch, length = padding.shape
        row = torch.arange(batch, device=padding.device).repeat(length)
        if not padding.any():
            return cls(row, None, batch)
        index = padding.t().reshape(-1).logical_not().nonzero().squeeze(1)
        return cls(row[index], index, batch)

    def take(self, flat: Tensor) -> Tensor:
        """The tokens' rows (N, C) of flattened activations (T·B, C)."""
        return flat if self.index is None else flat.index_select(0, self.index)


@dataclass(frozen=True)
class RoutedBatch:
    """The batch as one stack's routers see it; the same for every MoE layer of the stack.

    Attributes:
        tokens: which tokens there are.
        task: (B,) int64, the task of each row; None where the stack does not route by task.
        only_task: the task of all rows, when they share one and nothing is padding, else None.
        task_share: (number of tasks,) fp32 summing to 1, the share of the training tokens that each task has.
        task_tokens: (W, number of tasks) int64, the tokens of each task on every process; None unless the experts are
            spread over W processes.
        tables: the gates of the stack's task routers, where they were read for all layers at once.
        task_counts: the tokens of each task, on the host, where they were read.
        sentence: (B, C), what a sentence router routes by; None: the mean of the row's tokens at the layer's input.
    """

    tokens: TokenBatch
    task: Tensor | None = None
    only_task: int | None = None
    task_share: Tensor | None = None
    task_tokens: Tensor | None = None
    tables: Mapping[TableRouter, Gates] = field(default_factory=dict)
    task_counts: list[int] | None = None
    sentence: Tensor | None = None
