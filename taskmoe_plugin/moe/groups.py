"""Which rows belong to which network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def one_hot(index: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """(N, size) in the given type, 1 where ``index`` (N,), of any type of integers, names the column."""
    # In one pass; PyTorch's own makes int64, eight bytes for each place, which a product would have to convert.
    every = torch.arange(size, device=index.device, dtype=index.dtype)
    found = torch.empty(index.numel(), size, device=index.device, dtype=dtype)
    return torch.eq(index.unsqueeze(1), every, out=found)


class Groups:
    """Which of A rows belong to which of E groups: first those of group 0, then those of group 1, and so on.

    Attributes:
        ends: (E,) int32, where the rows of each group end; the last end is A.
        owner: (A,), of any type of integers, the group of each row.
        counts: the number of rows of each group, where the host knows it.
    """

    def __init__(self, ends: Tensor, owner: Tensor, counts: Sequence[int] | None = None) -> None:
        self.ends = ends
        self.owner = owner
        self.counts = counts
        self._members: Tensor | None = None

    @classmethod
    def of_counts(cls, counts: Sequence[int], device: torch.device) -> Groups:
        """Groups of so many rows; the host does not wait for a GPU."""
        sizes = torch.tensor(counts)
        owner = torch.arange(len(counts)).repeat_interleave(sizes)
        ends = sizes.cumsum(0).int()
        return cls(ends.to(device, non_blocking=True), owner.to(device, non_blocking=True), counts)

    def members(self, dtype: torch.dtype) -> Tensor:
        """(A, E), 1 where a row is of a group; made once."""
        if self._members is None or self._members.dtype != dtype:
            self._members = one_hot(self.owner, self.ends.numel(), dtype)
        return self._members
