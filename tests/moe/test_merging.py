"""Experts that are merged: a task's network has the weighted mean of their weights."""

from __future__ import annotations

import pytest
import torch

from taskmoe_plugin.moe import Experts, MergingTaskGates
from tests.helpers.moe import make_batch, make_layer


def test_the_best_k_experts_are_merged_with_weights_that_sum_to_1() -> None:
    gates = MergingTaskGates(layers=2, tasks=3, experts=5, top_k=2)
    found = gates()
    best = (gates.LOGIT_SCALE * gates.table).softmax(dim=-1)
    values, experts = best.sort(dim=-1, descending=True)
    expected = torch.zeros_like(best).scatter(-1, experts[..., :2], values[..., :2])
    torch.testing.assert_close(found.shares, expected / expected.sum(dim=-1, keepdim=True))
    assert MergingTaskGates(layers=1, tasks=3, experts=5, top_k=1)().weights.eq(1).all()


def test_gates_begin_with_logits_of_variance_1() -> None:
    torch.manual_seed(0)
    logits = MergingTaskGates(layers=4, tasks=50, experts=50, top_k=50)().logits
    assert logits is not None
    assert logits.std().item() == pytest.approx(1, rel=0.05)


def test_every_gate_and_every_expert_learns_from_every_task() -> None:
    layer = make_layer("merged", experts=4, top_k=4)
    batch = make_batch(torch.zeros(4, 3, dtype=torch.bool))
    batch.task[:3] = torch.arange(3)
    layer(torch.randn(3, 4, 6), batch)[0].square().sum().backward()
    assert layer.gates.table.grad.abs().gt(0).all()
    for parameter in layer.moe.experts.parameters():
        assert parameter.grad.flatten(1).abs().sum(dim=1).gt(0).all()


def test_a_task_of_which_the_batch_has_nothing_leaves_its_gate_alone() -> None:
    layer = make_layer("merged", experts=4, top_k=4)
    batch = make_batch(torch.zeros(2, 3, dtype=torch.bool))
    batch.task[:] = 1
    layer(torch.randn(3, 2, 6), batch)[0].square().sum().backward()
    assert layer.gates.table.grad[0].abs().sum(dim=1).gt(0).tolist() == [False, True, False]


def test_merged_under_automatic_mixed_precision_gates_are_fp32() -> None:
    layer = make_layer("merged", experts=4, top_k=4)
    batch = make_batch(torch.zeros(2, 3, dtype=torch.bool))
    x = torch.randn(3, 2, 6)
    expected, _ = layer(x, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, routing = layer(x, batch)
    assert routing.merging is not None
    assert routing.merging.dtype == torch.float32
    torch.testing.assert_close(output.float(), expected, atol=0.05, rtol=0.05)


def test_the_one_network_of_a_task_is_the_weighted_mean() -> None:
    experts, weights = Experts(3, 4, 5, torch.relu), torch.tensor([0.5, 0.2, 0.3])
    network = experts.merge(weights)
    for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"):
        own = getattr(experts, name)
        torch.testing.assert_close(getattr(network, name), 0.5 * own[0] + 0.2 * own[1] + 0.3 * own[2])


def test_experts_can_begin_with_a_smaller_second_layer() -> None:
    torch.manual_seed(0)
    plain = Experts(2, 4, 5, torch.relu)
    torch.manual_seed(0)
    scaled = Experts(2, 4, 5, torch.relu, gain=0.5)
    assert torch.equal(scaled.fc1_weight, plain.fc1_weight)
    assert torch.equal(scaled.fc2_weight, 0.5 * plain.fc2_weight)
    assert torch.equal(scaled.fc2_bias, 0.5 * plain.fc2_bias)
