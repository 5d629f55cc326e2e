"""No layer makes the host wait for a GPU: what it needs to know is read once for all layers of a stack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from taskmoe_plugin.moe import (
    Expert,
    MoELayer,
    RoutedBatch,
    Router,
    SentenceRouter,
    TaskRouter,
    TokenBatch,
    TokenRouter,
)
from taskmoe_plugin.moe.routers import read_tables

WIDTH, EXPERTS, TASKS, ROWS, LENGTH = 16, 8, 3, 6, 4
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def task_batch(router: TaskRouter, padded: bool, tasks: int, device: str = "cpu") -> RoutedBatch:
    """A batch as a stack describes it to its layers."""
    padding = torch.zeros(ROWS, LENGTH, dtype=torch.bool, device=device)
    padding[0, 0] = padded
    tokens = TokenBatch.from_padding(padding)
    task = torch.arange(ROWS, device=device) % tasks
    counts = torch.bincount(task[tokens.row], minlength=TASKS).tolist()
    only_task = 0 if tasks == 1 and not padded else None
    share = torch.full((TASKS,), 1 / TASKS, device=device)
    return RoutedBatch(tokens, task, only_task, share, tables=read_tables([router]), task_counts=counts)


def make_layer(router: Router, device: str = "cpu", dtype: torch.dtype = torch.float32) -> MoELayer:
    torch.manual_seed(0)
    experts = [Expert(WIDTH, 2 * WIDTH, F.relu) for _ in range(EXPERTS)]
    return MoELayer(router, experts).to(device, dtype)


@contextmanager
def forbidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the context, whatever would wait for a GPU raises."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the host would wait for the GPU")

    with monkeypatch.context() as patch:
        for name in ("tolist", "item", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(Tensor, name, refuse)
        patch.setattr(torch, "bincount", refuse)
        yield


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("tasks", [1, TASKS])
def test_a_task_routed_layer_reads_nothing_from_its_device(
    monkeypatch: pytest.MonkeyPatch, tasks: int, padded: bool
) -> None:
    layer = make_layer(TaskRouter(TASKS, WIDTH, EXPERTS, top_k=2))
    batch = task_batch(layer.router, padded, tasks)  # type: ignore[arg-type]
    x = torch.randn(LENGTH, ROWS, WIDTH)
    with forbidden(monkeypatch):
        output, _ = layer(x, batch)
    expected, _ = layer(x, replace(batch, tables={}, task_counts=None))
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_the_check_notices_a_layer_that_reads_its_table_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer(TaskRouter(TASKS, WIDTH, EXPERTS, top_k=2))
    batch = replace(task_batch(layer.router, False, TASKS), tables={})  # type: ignore[arg-type]
    with forbidden(monkeypatch), pytest.raises(AssertionError, match="would wait"):
        layer(torch.randn(LENGTH, ROWS, WIDTH), batch)


@contextmanager
def gpu_that_must_not_be_waited_for() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("tasks", [1, TASKS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_a_task_routed_layer_does_not_wait(tasks: int, padded: bool, dtype: torch.dtype) -> None:
    layer = make_layer(TaskRouter(TASKS, WIDTH, EXPERTS, top_k=2), "cuda", dtype)
    batch = task_batch(layer.router, padded, tasks, "cuda")  # type: ignore[arg-type]
    x = torch.randn(LENGTH, ROWS, WIDTH, device="cuda", dtype=dtype, requires_grad=True)
    with gpu_that_must_not_be_waited_for():
        layer(x, batch)[0].square().sum().backward()


@needs_gpu
@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this PyTorch has no grouped matrix products")
@pytest.mark.parametrize("router", [SentenceRouter, TokenRouter])
def test_on_a_gpu_in_bf16_routing_by_content_does_not_wait_either(router: type[Router]) -> None:
    layer = make_layer(router(WIDTH, EXPERTS, 2), "cuda", torch.bfloat16)
    batch = RoutedBatch(TokenBatch.from_padding(torch.zeros(ROWS, LENGTH, dtype=torch.bool, device="cuda")))
    x = torch.randn(LENGTH, ROWS, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    with gpu_that_must_not_be_waited_for():
        layer(x, batch)[0].square().sum().backward()
