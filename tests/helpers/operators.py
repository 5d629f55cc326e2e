"""Counting the operators of PyTorch that something calls."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# What is no kernel of a GPU, besides views.
_OF_THE_HOST = ("aten::empty", "aten::_unsafe_view", "aten::promote_types")


class CountedOperators(TorchDispatchMode):
    """Counts the operators that are called within it.

    Attributes:
        calls: how often each is called, by name.
        launches: of how many a GPU would hear. A view costs the host alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.name()] += 1
        self.launches += not func.is_view and not func.name().startswith(_OF_THE_HOST)
        return func(*args, **(kwargs or {}))
