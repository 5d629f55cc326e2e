"""One expert: a feed-forward network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
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


class AbsentExpert(nn.Module):
    """Stands for an expert that another process holds.

    Its parameters have one element each, which is 0 and stays 0. They are there because optimizers know parameters by
    number: with them a parameter has the same number on every process, however many there are.
    """

    def __init__(self) -> None:
        super().__init__()
        with seeded(0):
            self.fc1, self.fc2 = nn.Linear(1, 1), nn.Linear(1, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the context PyTorch draws random numbers on the CPU from a seed; afterwards it goes on as before."""
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
