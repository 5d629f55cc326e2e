"""One expert: a feed-forward network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F


class Expert(nn.Module):
    """``fc2(dropout(activation(fc1(x))))``, the feed-forward network of a Transformer layer.

    Initialised like fairseq's own feed-forward layers, so that a model with one expert starts like a dense one.
    """

    def __init__(
        self, width: int, ffn_width: int, activation: Callable[[Tensor], Tensor], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ffn_width)
        self.fc2 = nn.Linear(ffn_width, width)
        self.activation = activation
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map (A, C) to (A, C), in the dtype of the weights."""
        hidden = self.activation(self.fc1(x))
        hidden = F.dropout(hidden, self.dropout, self.training)
        return self.fc2(hidden)  # type: ignore[no-any-return]
