"""The layer as a whole: which experts compute which tokens, and that nothing else matters to a row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmoe_plugin.moe import Experts
from tests.helpers.moe import ROUTINGS, WIDTH, Batch, RoutedMoE, expert_output, make_batch, make_layer

PADDING = torch.tensor([[False, False, False, False], [False, False, True, True], [True, False, False, True]])


def inputs(padding: Tensor, seed: int = 0) -> Tensor:
    rows, length = padding.shape
    return torch.randn(length, rows, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weighted_sum(layer: RoutedMoE, x: Tensor, batch: Batch) -> Tensor:
    """y = Σ weight · expert(x), or that of the network of weights Σ weight · θ_expert, one token at a time."""
    routing = layer.route(x, batch)
    rows, length = batch.padding.shape
    expected, token = torch.zeros_like(x), 0
    for t in range(length):
        for b in range(rows):
            if batch.padding[b, t]:
                continue
            if routing.merging is not None:
                expected[t, b] = merged_output(layer.moe.experts, routing.merging[routing.experts[token, 0]], x[t, b])
            else:
                for expert, weight in zip(routing.experts[token].tolist(), routing.weights[token]):
                    expected[t, b] = expected[t, b] + weight * expert_output(layer.moe.experts, expert, x[t, b])
            token += 1
    return expected


def merged_output(experts: Experts, weights: Tensor, x: Tensor) -> Tensor:
    fc1, fc1_bias, fc2, fc2_bias = (
        sum(weight * each[expert] for expert, weight in enumerate(weights))
        for each in (experts.fc1_weight, experts.fc1_bias, experts.fc2_weight, experts.fc2_bias)
    )
    return fc2 @ torch.relu(fc1 @ x + fc1_bias) + fc2_bias


@pytest.mark.parametrize("kind", ROUTINGS)
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_output_is_the_weighted_sum_of_each_tokens_experts_and_zero_at_padding(kind: str, top_k: int) -> None:
    layer, batch = make_layer(kind, top_k=top_k).double(), make_batch(PADDING)
    x = inputs(PADDING)
    output, record = layer(x, batch)
    torch.testing.assert_close(output, weighted_sum(layer, x, batch))
    assert record.dropped == 0
    assert record.share.sum().item() == pytest.approx(1.0)
    assert (output.transpose(0, 1)[PADDING] == 0).all()


@pytest.mark.parametrize("kind", ROUTINGS)
def test_gradients_are_those_of_the_weighted_sum(kind: str) -> None:
    layer, batch, x = make_layer(kind).double(), make_batch(PADDING), inputs(PADDING).requires_grad_()
    probe = inputs(PADDING, seed=9)
    gradients = []
    for output in (layer(x, batch)[0], weighted_sum(layer, x, batch)):
        leaves = [x, *layer.parameters()]
        gradients.append(torch.autograd.grad((output * probe).sum(), leaves, materialize_grads=True))
    # Gates compute in fp32.
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ROUTINGS)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=4), st.integers(0, 2**16))
def test_a_row_alone_gives_what_it_gives_among_others(kind: str, mask: list[list[bool]], seed: int) -> None:
    layer, padding = make_layer(kind).double(), torch.tensor(mask)
    x, batch = inputs(padding, seed), make_batch(padding, seed)
    output, _ = layer(x, batch)
    for row in range(len(padding)):
        torch.testing.assert_close(layer(x[:, row : row + 1], batch.row(row))[0], output[:, row : row + 1])


@pytest.mark.parametrize("kind", ROUTINGS)
def test_padding_counts_in_no_statistic(kind: str) -> None:
    layer, x = make_layer(kind), inputs(PADDING).float()
    wide = torch.cat([PADDING, torch.ones(3, 5, dtype=torch.bool)], dim=1)
    noise = 100 * torch.randn(5, 3, WIDTH)
    records = [layer(x, make_batch(PADDING))[1], layer(torch.cat([x, noise]), make_batch(wide))[1]]
    for name in ("probs", "experts", "weights"):
        torch.testing.assert_close(*(getattr(record.gates, name) for record in records))
    torch.testing.assert_close(records[0].share, records[1].share)


def test_capacity_drops_the_last_tokens_in_training_and_none_in_evaluation() -> None:
    layer = make_layer("token", experts=2, top_k=1, capacity_factor=0.5)
    with torch.no_grad():
        layer.moe.router.gate.weight.copy_(torch.tensor([[1.0] * WIDTH, [-1.0] * WIDTH]))
    padding = torch.zeros(1, 8, dtype=torch.bool)
    x, batch = torch.ones(8, 1, WIDTH), make_batch(padding)
    output, record = layer.train()(x, batch)
    # All eight tokens want expert 0, which takes ceil(0.5 · 1 · 8 / 2).
    assert record.dropped == 0.75
    assert (output[:2] != 0).any()
    assert (output[2:] == 0).all()
    assert layer.eval()(x, batch)[1].dropped == 0


def test_evaluation_has_a_capacity_of_its_own() -> None:
    layer = make_layer("token", experts=2, top_k=1, eval_capacity_factor=0.25).eval()
    x, batch = torch.ones(8, 1, WIDTH), make_batch(torch.zeros(1, 8, dtype=torch.bool))
    assert layer(x, batch)[1].dropped == 7 / 8
    assert layer.train()(x, batch)[1].dropped == 0


@pytest.mark.parametrize("kind", ROUTINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("padded", [True, False])
def test_half_precision_keeps_gates_fp32_and_the_output_half(kind: str, dtype: torch.dtype, padded: bool) -> None:
    padding = PADDING if padded else torch.zeros_like(PADDING)
    batch = make_batch(padding)
    layer, x = make_layer(kind).to(dtype), inputs(padding).to(dtype)
    output, record = layer(x, batch)
    assert output.dtype == dtype
    assert record.gates.probs.dtype == record.gates.weights.dtype == record.share.dtype == torch.float32
    exact, _ = layer.double()(x.double(), batch)
    torch.testing.assert_close(output.double(), exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("kind", ROUTINGS)
def test_a_batch_of_padding_alone_gives_zeros_and_finite_gradients(kind: str) -> None:
    padding = torch.ones(2, 3, dtype=torch.bool)
    layer, x = make_layer(kind), torch.randn(3, 2, WIDTH, requires_grad=True)
    output, record = layer(x, make_batch(padding))
    assert (output == 0).all()
    assert record.dropped == 0
    ((output + x).sum() + (record.share @ record.gates.probs).sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_a_layer_has_four_parameters_however_many_experts() -> None:
    names = [name for name, _ in make_layer("task", experts=11).moe.named_parameters()]
    assert names == [f"experts.{name}" for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")]


def test_an_expert_gets_a_gradient_of_zeros_from_tasks_that_do_not_use_it() -> None:
    layer, padding = make_layer("static", experts=4, top_k=2), torch.zeros(1, 3, dtype=torch.bool)
    layer(torch.randn(3, 1, WIDTH), Batch(padding, torch.tensor([1])))[0].sum().backward()
    gradient = layer.moe.experts.fc1_weight.grad
    assert [expert for expert in range(4) if gradient[expert].any()] == [1, 3]
