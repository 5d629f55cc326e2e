"""What a layer costs a GPU, told on a machine without one: how many operators it calls, and that none waits.

An operator of PyTorch is a kernel launch or a few, or a view, which costs the host alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn import functional as F

from taskmoe_plugin.moe import Routing, Tokens, products
from tests.helpers.moe import BY_TASK, ROUTINGS, Batch, RoutedMoE, make_batch, make_layer, route_tasks
from tests.helpers.operators import CountedOperators

WIDTH, ROWS, LENGTH = 16, 32, 4
needs_grouped_mm = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this PyTorch has no grouped products")


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computes as on a GPU that has grouped products."""
    monkeypatch.setattr(products, "has_grouped_product", lambda *_: True)


def layer_and_input(kind: str, experts: int, tasks: int, padded: bool) -> tuple[RoutedMoE, Any, Tensor]:
    padding = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    padding[0, 0] = padded
    layer = make_layer(kind, experts=experts, tasks=tasks, width=WIDTH, ffn_width=2 * WIDTH).to(torch.bfloat16)
    x = torch.randn(LENGTH, ROWS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    return layer, make_batch(padding, tasks=tasks), x


def operators(kind: str, experts: int, tasks: int, padded: bool = True) -> int:
    """The operators of one pass forward and backward; the routing of tasks is a stack's business, and not counted."""
    layer, batch, x = layer_and_input(kind, experts, tasks, padded)
    given = batch.tokens if layer.gates is None else layer.route(x, batch)
    with CountedOperators() as counted:
        output, _ = layer.moe(x, given)
        output.backward(torch.ones_like(output))
    return counted.calls.total()


def dense_operators() -> int:
    linears = [torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(4 * WIDTH, WIDTH)]
    fc1, fc2 = (each.to(torch.bfloat16) for each in linears)
    x = torch.randn(LENGTH, ROWS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    with CountedOperators() as counted:
        output = fc2(F.relu(fc1(x)))
        output.backward(torch.ones_like(output))
    return counted.calls.total()


@needs_grouped_mm
@pytest.mark.parametrize("kind", ROUTINGS)
def test_a_layer_calls_as_many_operators_for_any_number_of_experts_and_tasks(grouped: None, kind: str) -> None:
    found = {operators(kind, experts, tasks) for experts in (8, 128) for tasks in (1, 16)}
    assert len(found) == 1


@needs_grouped_mm
@pytest.mark.parametrize("kind", BY_TASK)
@pytest.mark.parametrize("padded", [False, True])
def test_a_layer_calls_at_most_2_5_times_the_operators_of_a_dense_network(grouped: None, kind: str, padded) -> None:
    # To merge experts takes a product for each of their four parts.
    limit = 2.7 if kind == "merged" else 2.5
    assert operators(kind, 32, 16, padded) <= limit * dense_operators()


def test_the_count_notices_an_operator_for_each_expert() -> None:
    assert operators("token", 32, 16) > operators("token", 8, 16) + 20


def pretended(tensor: Tensor) -> Tensor:
    """A tensor of this shape and type on a GPU that is not there; within a FakeTensorMode."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def move(module: nn.Module) -> None:
    """Move a module to a GPU that is not there; within a FakeTensorMode."""
    for each in module.modules():
        for name, parameter in list(each.named_parameters(recurse=False)):
            setattr(each, name, nn.Parameter(pretended(parameter)))
        for name, buffer in list(each.named_buffers(recurse=False)):
            setattr(each, name, pretended(buffer))


def run_on_pretended_gpu(layer: RoutedMoE, batch: Batch, dtype: torch.dtype = torch.bfloat16) -> None:
    """One pass forward; whatever would make the host read a GPU's memory raises."""
    tokens = batch.tokens
    with FakeTensorMode(), torch.no_grad():
        move(layer)
        index = None if tokens.index is None else pretended(tokens.index)
        there = Tokens(pretended(tokens.row), index, tokens.rows)
        given: Routing | Tokens = there
        if layer.gates is not None:
            given = route_tasks(layer.gates, there.row, there)
        x = torch.empty(LENGTH, ROWS, WIDTH, dtype=dtype, device="cuda")
        output, _ = layer.moe(x, given)
        assert (output.device.type, output.shape, output.dtype) == ("cuda", x.shape, x.dtype)


@needs_grouped_mm
@pytest.mark.parametrize("kind", ROUTINGS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("capacity", [0.0, 1.0])
def test_a_layer_reads_nothing_from_its_device(grouped: None, kind: str, padded: bool, capacity: float) -> None:
    layer, batch, _ = layer_and_input(kind, 8, 3, padded)
    layer.moe.capacity_factor = capacity
    run_on_pretended_gpu(layer, batch)


@pytest.mark.parametrize("read", [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0], Tensor.tolist])
def test_the_check_notices_what_would_wait(grouped: None, read: Any) -> None:
    layer, batch, _ = layer_and_input("token", 8, 3, False)
    layer.moe.experts.activation = lambda x: read(x) and x
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException, RuntimeError)):
        run_on_pretended_gpu(layer, batch)


def test_in_full_precision_tokens_that_nobody_has_counted_have_to_be_read() -> None:
    # There is no grouped product in fp32: that a task's tokens are counted beforehand is what avoids it.
    layer, batch, _ = layer_and_input("token", 8, 3, False)
    with pytest.raises(DataDependentOutputException):
        run_on_pretended_gpu(layer.float(), batch, torch.float32)
