"""Where the tests of this directory run: on a GPU, or nowhere.

With ``TASKMOE_GPU_TESTS=cpu`` they run on the CPU instead, to see whether they would run at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The device of all tests here."""
    if os.environ.get("TASKMOE_GPU_TESTS") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU here")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def free_memory(device: torch.device) -> Iterator[None]:
    """Give back what a test has left on the GPU, which several processes share."""
    yield
    if device.type == "cuda":
        torch.cuda.empty_cache()
