"""The kernels between an MoE layer's products compute what PyTorch's operators do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from taskmoe_plugin.moe import Assignments, Groups, kernels, sort_assignments

EXPERTS, TOKENS, PADDING = 5, 33, 7
# Rounding, relative to sums of a few values around 1.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
pytestmark = pytest.mark.parametrize("dtype", TOLERANCE)


@pytest.fixture(autouse=True)
def has_kernels(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("the kernels are for a GPU")
    assert kernels.triton_kernels() is not None


class Example:
    """Assignments of tokens among padding, and rows."""

    def __init__(self, device: torch.device, dtype: torch.dtype, columns: int, k: int, padded: bool) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        self.size = TOKENS + PADDING if padded else TOKENS
        self.index = random(self.size).topk(TOKENS).indices.sort().values if padded else None
        experts = random(TOKENS, EXPERTS).topk(k).indices
        self.assignments: Assignments = sort_assignments(experts, EXPERTS, self.index)
        self.y = random(TOKENS * k, columns).to(dtype)
        self.weights = random(TOKENS, k).softmax(1)
        self.bias = random(EXPERTS, columns).to(dtype)
        self.grad = random(self.size, columns).to(dtype)

    def all_steps(self, left_out: int) -> list[Tensor | None]:
        """What all kernels compute."""
        own = self.assignments
        y = self.y[: len(self.y) - left_out]
        found: list[Tensor | None] = [
            kernels.gather_sum(y, own.place, weights, self.index, self.grad.shape) for weights in (None, self.weights)
        ]
        for wanted in (False, True):
            found += kernels.gather_weighted(self.grad, own.row, self.weights, own.order, y, wanted)
        for relu in (False, True):
            rows = y.clone()
            kernels.add_bias_(rows, self.bias, Groups(own.ends, own.owner[: len(y)]), relu)
            found.append(rows)
        return found


@pytest.mark.parametrize("left_out", [0, 4])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("columns", [8, 48, 5000])
def test_each_step_gives_what_operators_give(
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    columns: int,
    k: int,
    padded: bool,
    left_out: int,
) -> None:
    example = Example(device, dtype, columns, k, padded)
    ours = example.all_steps(left_out)
    monkeypatch.setattr(kernels, "triton_kernels", lambda: None)
    for found, expected in zip(ours, example.all_steps(left_out), strict=True):
        if expected is None:
            assert found is None
            continue
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        # The gradients of weights are sums of as many products as there are columns.
        scale = columns**0.5 if expected.dtype != dtype or found.shape == example.weights.shape else 1
        torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=scale * TOLERANCE[dtype])


def test_what_is_no_number_stays_none(device: torch.device, dtype: torch.dtype) -> None:
    example = Example(device, dtype, 48, 1, False)
    example.y[0, 0] = float("nan")
    kernels.add_bias_(example.y, example.bias, Groups(example.assignments.ends, example.assignments.owner), True)
    assert example.y[0, 0].isnan()
    assert not example.y[1:].lt(0).any()
