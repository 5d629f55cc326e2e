"""Values of the gates' losses and statistics, and where the gradient of the balance loss pushes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from taskmoe_plugin.moe import (
    Gates,
    balance_loss,
    expert_load,
    experts_in_use,
    gate_entropy,
    mutual_information_loss,
    top_k_gates,
    z_loss,
)
from tests.helpers.moe import WIDTH, Batch, RoutedMoE, gates_of, make_layer

EVEN = torch.tensor([0.5, 0.5])


def test_the_balance_loss_is_1_when_balanced() -> None:
    assert balance_loss(gates_of([[0.9, 0.1], [0.1, 0.9]]), EVEN).item() == pytest.approx(1.0)
    every = top_k_gates(torch.zeros(1, 4), 4)
    assert balance_loss(every, torch.ones(1)).item() == pytest.approx(1.0)


def test_the_balance_loss_is_e_when_one_expert_has_everything() -> None:
    gates = top_k_gates(torch.tensor([[100.0, 0.0, 0.0, 0.0]] * 2), 1)
    assert balance_loss(gates, EVEN).item() == pytest.approx(4.0)


def test_the_balance_loss_weighs_units_by_their_share_of_tokens() -> None:
    gates, share = gates_of([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0.75, 0.25])
    mean = [0.75 * 0.9 + 0.25 * 0.2, 0.75 * 0.1 + 0.25 * 0.8]
    assert balance_loss(gates, share).item() == pytest.approx(2 * (0.75 * mean[0] + 0.25 * mean[1]))


def test_the_load_counts_every_choice_of_a_unit_the_same() -> None:
    gates = gates_of([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]], k=2)
    assert expert_load(gates, torch.tensor([0.5, 0.5])).tolist() == [0.25, 0.5, 0.25]


@pytest.mark.parametrize("k", [1, 2])
def test_the_gradient_of_the_balance_loss_lowers_the_fullest_expert_and_raises_the_emptiest(k: int) -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]], requires_grad=True)
    balance_loss(top_k_gates(logits, k), EVEN).backward()
    # Descent subtracts the gradient.
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 2] < 0).all()


def collapsed(kind: str) -> tuple[RoutedMoE, Tensor, Batch]:
    """A layer of which all units prefer the same two experts of four, and a batch of 12 rows of 5 tokens."""
    layer = make_layer(kind, experts=4, top_k=2, seed=1, tasks=12)
    rows, length = 12, 5
    x = 0.5 * torch.randn(length, rows, WIDTH) + torch.randn(rows, WIDTH)
    with torch.no_grad():
        weight = layer.gates.weight[0] if kind == "task" else layer.moe.router.gate.weight
        weight[2:] = -weight[:2]
        x += 30 * (weight[0] + weight[1])
        if kind == "task":
            layer.gates.head_start.zero_()
            layer.gates.embedding += 3 * (weight[0] + weight[1])
    return layer, x, Batch(torch.zeros(rows, length, dtype=torch.bool), torch.arange(rows))


def gate_parameters(layer: RoutedMoE) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, each) for name, each in layer.named_parameters() if ".experts." not in name]


@pytest.mark.parametrize("kind", ["task", "sentence", "token"])
def test_descending_the_balance_loss_alone_evens_the_load_of_a_collapsed_gate(kind: str) -> None:
    layer, x, batch = collapsed(kind)
    optimizer = torch.optim.Adam([each for _, each in gate_parameters(layer)], lr=0.01)
    losses, loads = [], []
    for _ in range(300):
        routing = layer.route(x, batch)
        loss = balance_loss(routing.gates, routing.share)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        loads.append(expert_load(routing.gates, routing.share))
    assert loads[0].max() > 0.4
    assert losses[0] > 1.3
    assert losses[-1] < 1.1
    assert loads[-1].max() < 0.4
    assert loads[-1].min() > 0.1


@pytest.mark.parametrize("kind", ["task", "sentence", "token"])
def test_the_balance_loss_reaches_every_parameter_of_the_gate(kind: str) -> None:
    layer, x, batch = collapsed(kind)
    routing = layer.route(x, batch)
    balance_loss(routing.gates, routing.share).backward()
    for name, parameter in gate_parameters(layer):
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_load_that_is_known_of_more_than_these_units_takes_the_place_of_theirs() -> None:
    gates, share = gates_of([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0.25, 0.25])
    load = torch.tensor([0.3, 0.7])
    mean = [0.25 * (0.9 + 0.2), 0.25 * (0.1 + 0.8)]
    assert balance_loss(gates, share, load).item() == pytest.approx(2 * (0.3 * mean[0] + 0.7 * mean[1]))
    assert experts_in_use(gates, share, torch.tensor([1.0, 0.0])).item() == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_and_their_gradients_are_finite_and_fp32_under_autocast(dtype: torch.dtype) -> None:
    tokens = 65_536
    logits = torch.zeros(tokens, 4, requires_grad=True)
    share = torch.full((tokens,), 1 / tokens)
    with torch.autocast("cpu", dtype=dtype):
        gates = top_k_gates(logits, 2)
        losses = [balance_loss(gates, share), z_loss(gates, share), gate_entropy(gates, share)]
    assert all(each.dtype == torch.float32 for each in losses)
    assert losses[0].item() == pytest.approx(1.0, abs=1e-3)
    # A loss scale of fp16 training times the sample size that the criterion multiplies with.
    (losses[0] * 2**7 * tokens).backward()
    assert logits.grad.isfinite().all()


def test_the_z_loss_is_the_mean_squared_log_sum_exp() -> None:
    logits, share = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([0.25, 0.75])
    expected = 0.25 * math.log(math.e + math.e**2) ** 2 + 0.75 * math.log(2) ** 2
    assert z_loss(top_k_gates(logits, 1), share).item() == pytest.approx(expected)


def test_a_fixed_choice_has_no_z_loss() -> None:
    probs = torch.tensor([[1.0, 0.0]])
    assert z_loss(Gates(None, probs, torch.tensor([[0]]), torch.ones(1, 1)), torch.ones(1)).item() == 0.0


def test_entropy_is_0_when_certain_and_log_e_when_indifferent() -> None:
    assert gate_entropy(gates_of([[1.0, 0.0], [0.0, 1.0]]), EVEN).item() == 0.0
    assert gate_entropy(gates_of([[0.25] * 4]), torch.ones(1)).item() == pytest.approx(math.log(4))
    mixed = gate_entropy(gates_of([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([0.75, 0.25]))
    assert mixed.item() == pytest.approx(0.25 * math.log(2))


def test_mutual_information_is_ln_e_where_each_unit_is_certain_of_an_expert_of_its_own() -> None:
    loss = mutual_information_loss(gates_of([[1.0, 0.0], [0.0, 1.0]]), EVEN)
    assert loss.item() == pytest.approx(-math.log(2), abs=1e-6)
    # Nothing is learnt of an expert from the unit where all choose alike, certain or not.
    for row in ([1.0, 0.0], [0.5, 0.5], [0.9, 0.1]):
        assert mutual_information_loss(gates_of([row, row]), EVEN).item() == pytest.approx(0, abs=1e-6)


def test_mutual_information_is_the_published_formula() -> None:
    rows, share = [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], [0.25, 0.75]
    mean = [sum(s * row[e] for s, row in zip(share, rows)) for e in range(3)]
    conditional = sum(s * sum(p * math.log(p) for p in row) for s, row in zip(share, rows))
    expected = sum(p * math.log(p) for p in mean) - conditional
    found = mutual_information_loss(gates_of(rows), torch.tensor(share))
    assert found.item() == pytest.approx(expected, abs=1e-6)
    # Units that stand for half of all tokens have half of it.
    half = mutual_information_loss(gates_of(rows), torch.tensor(share) / 2)
    assert half.item() == pytest.approx(expected / 2, abs=1e-6)
    assert mutual_information_loss(gates_of(rows), torch.zeros(2)).item() == 0


def test_mutual_information_has_a_finite_gradient_where_an_expert_is_not_allowed() -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf], [1.0, 0.0, -math.inf]], requires_grad=True)
    mutual_information_loss(top_k_gates(logits, 1), EVEN).backward()
    assert logits.grad.isfinite().all()


def test_an_expert_is_in_use_if_a_unit_with_tokens_chooses_it() -> None:
    gates = gates_of([[0.9, 0.1, 0.0, 0.0], [0.0, 0.1, 0.9, 0.0]])
    assert experts_in_use(gates, EVEN).item() == 0.5
    assert experts_in_use(gates, torch.tensor([1.0, 0.0])).item() == 0.25
