"""Low-rank language matrices: a linear map whose weight depends on the languages of a row.

W becomes W + V[source] · F[target], with V of shape (languages, outputs, R) and F (languages, R, inputs), so that each
pair has matrices of its own, made of parts that it shares with others (language-specific matrix synthesis, pair-wise;
Xu et al. 2023, arXiv 2305.13993). Given one language for both, each language has a matrix of its own (language-wise).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskmoe_plugin.moe.gates import full_precision

# The paper's initial values of V; F begins with zeros.
STD = 0.01


def low_rank_map(x: Tensor, v: Tensor, f: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """V[source] · F[target] · x for each row.

    Args:
        x: (T, B, inputs).
        v: (L, outputs, R).
        f: (L, R, inputs).
        source, target: (B, L) in the type of ``v``, one-hot, the languages of each row.

    Returns:
        (T, B, outputs).
    """
    # Rows are picked by products: backward then is a product too, which gives every language a gradient and adds up
    # without atomics.
    picked_v = torch.matmul(source, v.flatten(1)).view(-1, *v.shape[1:])
    picked_f = torch.matmul(target, f.flatten(1)).view(-1, *f.shape[1:])
    narrow = torch.bmm(x.transpose(0, 1), picked_f.transpose(1, 2))
    return torch.bmm(narrow, picked_v.transpose(1, 2)).transpose(0, 1)


def fold_low_rank(weight: Tensor, v: Tensor, f: Tensor) -> Tensor:
    """W + V · F for one pair, (outputs, inputs), in fp32 or more.

    Args:
        weight: (outputs, inputs).
        v: (outputs, R), that of the source language.
        f: (R, inputs), that of the target language.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    with full_precision(weight.device):
        return torch.addmm(weight.to(dtype), v.to(dtype), f.to(dtype))


@dataclass(frozen=True, eq=False)
class Languages:
    """The languages of a batch, counted from 0.

    Attributes:
        source, target: (B, L), one-hot; zeros in a row without languages.
        pair: those of all rows, where they are known to have the same source and target.
        folded: the weights W + V · F of this pair that are made already.
    """

    source: Tensor
    target: Tensor
    pair: tuple[int, int] | None = None
    folded: dict[nn.Module, Tensor] = field(default_factory=dict)

    @classmethod
    def of_rows(
        cls, src_lang_id: Tensor, tgt_lang_id: Tensor, count: int, dtype: torch.dtype, look: bool = False
    ) -> Languages:
        """The languages of rows with these ids.

        Args:
            src_lang_id, tgt_lang_id: (B,) int64, counted from 1; 0: none.
            count: L.
            dtype: that of the parameters.
            look: whether to find out if all rows are of one pair, for which the host waits for a GPU once.
        """
        ids = torch.stack([src_lang_id, tgt_lang_id])
        source, target = F.one_hot(ids, count + 1)[..., 1:].to(dtype).unbind(0)
        pair = None
        if look:
            first, last = torch.stack([ids.amin(dim=1), ids.amax(dim=1)]).tolist()
            if first == last and min(first) > 0:
                pair = first[0] - 1, first[1] - 1
        return cls(source, target, pair)


class CurrentLanguages(threading.local):
    """The languages of the batch that a stack is computing, for all its low-rank maps. Each thread has its own.

    Attributes:
        now: None while there is no batch.
    """

    now: Languages | None = None

    def __reduce__(self) -> tuple[type[CurrentLanguages], tuple[()]]:
        return CurrentLanguages, ()  # the copy of a stack is in no batch

    @contextmanager
    def set(self, languages: Languages | None) -> Iterator[None]:
        """Within the context a batch of these languages is computed."""
        before, self.now = self.now, languages
        try:
            yield
        finally:
            self.now = before


class LowRankLinear(nn.Module):
    """A linear map (T, B, inputs) → (T, B, outputs) with ``weight`` + ``low_rank_source[s]`` · ``low_rank_target[t]``.

    At the start it is the map that it is made of. Where all rows are known to be of one pair, its weight is made once a
    batch, and the map costs what one without low-rank matrices costs. Both parameters have a gradient after every
    backward pass, zeros for languages that did not occur.

    Args:
        linear: the map, whose parameters it takes over.
        languages: L.
        rank: R.
        current: tells the languages of the batch.
        generator: of the initial values.
    """

    def __init__(
        self, linear: nn.Linear, languages: int, rank: int, current: CurrentLanguages, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.current = current
        self.weight = linear.weight
        self.bias = linear.bias
        outputs, inputs = linear.weight.shape
        self.low_rank_source = nn.Parameter(torch.randn(languages, outputs, rank, generator=generator) * STD)
        self.low_rank_target = nn.Parameter(torch.zeros(languages, rank, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map rows of the current languages.

        Raises:
            RuntimeError: no batch is being computed.
        """
        languages = self.current.now
        if languages is None:
            raise RuntimeError("a low-rank map was run outside its stack, which knows the languages of the batch")
        if languages.pair is not None:
            return F.linear(x, self._folded(languages, *languages.pair), self.bias)
        dense = F.linear(x, self.weight, self.bias)
        return dense + low_rank_map(x, self.low_rank_source, self.low_rank_target, languages.source, languages.target)

    def _folded(self, languages: Languages, source: int, target: int) -> Tensor:
        if self not in languages.folded:
            folded = fold_low_rank(self.weight, self.low_rank_source[source], self.low_rank_target[target])
            languages.folded[self] = folded.to(self.weight.dtype)
        return languages.folded[self]
