"""Grouped matrix products against one expert after the other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from taskmoe_plugin.moe import Expert
from taskmoe_plugin.moe.grouped import can_group, run_grouped

COUNTS = [3, 0, 5, 1]


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this PyTorch has no grouped matrix products")
def test_grouped_experts_give_the_outputs_and_gradients_of_single_ones() -> None:
    torch.manual_seed(0)
    grouped = [Expert(16, 32, F.relu) for _ in COUNTS]
    single = copy.deepcopy(grouped)
    x = torch.randn(sum(COUNTS), 16)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    ours = run_grouped(inputs[0], grouped, torch.tensor(COUNTS).cumsum(0).int())
    theirs = torch.cat([expert(part) for expert, part in zip(single, inputs[1].split(COUNTS))])
    torch.testing.assert_close(ours, theirs)
    for output in (ours, theirs):
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for one, other in zip(grouped, single):
        for mine, its in zip(one.parameters(), other.parameters()):
            torch.testing.assert_close(mine.grad, its.grad)


def test_grouped_products_are_for_bf16_on_a_gpu() -> None:
    assert not can_group(torch.zeros(1, 16, dtype=torch.bfloat16))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_grouped_products_are_for_bf16_alone() -> None:
    assert not can_group(torch.zeros(1, 16, device="cuda"))
