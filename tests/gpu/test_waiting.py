"""The host does not wait for a GPU in a layer, and once at most in a stack."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from taskmoe_plugin.moe import TaskGates
from tests.gpu.layers import EXPERTS, TASKS, WIDTH, LayerOnDevice
from tests.helpers.models import build_grouped, net_input, rows
from tests.helpers.moe import BY_TASK, ROUTINGS

WAITING = "called a synchronizing CUDA operation"


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Within the context whatever makes the host wait for a GPU raises."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


HALF = ("bfloat16", "float16")
# In fp32 there is a product for each expert: only those that a task's tokens are counted for beforehand need no look.
CASES = [
    *((kind, dtype, 0.0) for kind in ROUTINGS for dtype in HALF),
    *(("token", dtype, 1.0) for dtype in HALF),
    *((kind, "float32", 0.0) for kind in BY_TASK),
]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("kind", "dtype", "capacity"), CASES)
def test_a_layer_does_not_wait(device: torch.device, kind: str, dtype: str, capacity: float, padded: bool) -> None:
    layer = LayerOnDevice(kind, getattr(torch, dtype), padded, device)
    layer.moe.capacity_factor = capacity
    layer.step()
    with no_waiting(device):
        output = layer.step()
    assert output.isfinite().all()
    assert all(parameter.grad is not None for parameter in layer.moe.experts.parameters())


@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_gates_of_tasks_do_not_wait(device: torch.device, jitter: float) -> None:
    gates = TaskGates(2, TASKS, WIDTH, EXPERTS, 2, jitter).to(device)
    gates().weights.sum().backward()
    with no_waiting(device):
        gates().weights.sum().backward()


def test_the_check_notices_what_waits(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("nothing waits on a CPU")
    with pytest.raises(RuntimeError, match=WAITING), no_waiting(device):
        torch.ones(2, device=device).sum().item()


def routed_by(routing: str) -> dict[str, str]:
    return {f"{stack}_moe_routing": routing for stack in ("encoder", "decoder")}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("routing", ["source", "merged", "pair", "group", "sentence", "token"])
def test_a_stack_waits_once_at_most_to_route_a_batch(
    device: torch.device, tmp_path, routing: str, training: bool
) -> None:
    flags = {"moe_combine": "weights"} if routing == "merged" else routed_by(routing)
    model = build_grouped(tmp_path, moe_freq=1, moe_expert_count=4, **flags).to(device).train(training)
    batch = {name: value.to(device) for name, value in net_input(rows()).items()}
    padding = batch["src_tokens"].eq(model.encoder.padding_idx)
    model.encoder.route(padding, batch["src_lang_id"], batch["tgt_lang_id"])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            routed = model.encoder.route(padding, batch["src_lang_id"], batch["tgt_lang_id"])
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    assert len(routed.layers) == 2
    assert len([each for each in found if WAITING in str(each.message)]) <= 1
