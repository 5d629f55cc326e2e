"""Weights of a CTranslate2 model that are in memory only while they are written. Imports CTranslate2."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from ctranslate2.specs.model_spec import PyTorchVariable, Variable
from torch import Tensor

from taskmoe_plugin.subnet.weights import rounded


class ReadWhenNeeded(Variable):  # type: ignore[misc]
    """A float32 variable that is made anew each time CTranslate2 looks at its values.

    CTranslate2 quantises and writes one variable after the other, so that the model is never in memory as a whole.

    Args:
        shape: its shape.
        make: gives its values, in any floating-point type and as nobody else's.
    """

    def __init__(self, shape: torch.Size, make: Callable[[], Tensor]) -> None:
        self._shape = shape
        self._make = make

    @property
    def shape(self) -> list[int]:
        return list(self._shape)

    @property
    def dtype(self) -> str:
        return "float32"

    def numpy(self) -> np.ndarray:
        values: np.ndarray = self._make().float().numpy()
        return values

    def num_bytes(self) -> int:
        return self._shape.numel() * torch.float32.itemsize

    def to_bytes(self) -> np.ndarray:
        # CTranslate2 writes it to a file, which takes an array's memory as it is: a copy would be as large again.
        return np.ascontiguousarray(self.numpy())

    def _to(self, dtype: str) -> Variable:
        return PyTorchVariable(rounded(self._make(), f"--quantization {dtype}", getattr(torch, dtype)))

    def _equal(self, other: Variable) -> bool:
        return self is other
