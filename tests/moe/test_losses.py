"""Values of the gates' losses and statistics, and where the gradient of the balance loss pushes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from taskmoe_plugin.moe import (
    Gates,
    RoutedBatch,
    TokenBatch,
    balance_loss,
    experts_in_use,
    gate_entropy,
    top_k_gates,
    z_loss,
)
from taskmoe_plugin.moe.losses import expert_load
from tests.helpers.moe import WIDTH, gates_of, make_router

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


def test_the_load_counts_every_choice_of_a_unit_alike() -> None:
    gates = gates_of([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]], k=2)
    assert expert_load(gates, torch.tensor([0.5, 0.5])).tolist() == [0.25, 0.5, 0.25]


@pytest.mark.parametrize("k", [1, 2])
def test_the_gradient_of_the_balance_loss_lowers_the_fullest_expert_and_raises_the_emptiest(k: int) -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]], requires_grad=True)
    balance_loss(top_k_gates(logits, k), EVEN).backward()
    # Descent subtracts the gradient.
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 2] < 0).all()


def collapsed(kind: str) -> tuple[torch.nn.Module, Tensor, RoutedBatch]:
    """A router of which all units prefer the same two experts of four, and a batch of 12 rows of 5 tokens."""
    torch.manual_seed(1)
    router = make_router(kind, experts=4, top_k=2, tasks=12)
    rows, length = 12, 5
    x = 0.5 * torch.randn(length, rows, WIDTH) + torch.randn(rows, WIDTH)
    with torch.no_grad():
        router.gate.weight[2:] = -router.gate.weight[:2]
        x += 30 * (router.gate.weight[0] + router.gate.weight[1])
        if kind == "task":
            router.head_start.zero_()
            router.task_embedding += 3 * (router.gate.weight[0] + router.gate.weight[1])
    tokens = TokenBatch.from_padding(torch.zeros(rows, length, dtype=torch.bool))
    batch = RoutedBatch(tokens, torch.arange(rows), task_share=torch.full((rows,), 1 / rows))
    return router, x.view(-1, WIDTH), batch


@pytest.mark.parametrize("kind", ["task", "sentence", "token"])
def test_descending_the_balance_loss_alone_evens_the_load_of_a_collapsed_gate(kind: str) -> None:
    router, x, batch = collapsed(kind)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.01)
    losses, loads = [], []
    for _ in range(300):
        gates = router.gates(x, batch)
        share = router.share(batch, len(gates.probs))
        loss = balance_loss(gates, share)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        loads.append(expert_load(gates, share))
    assert loads[0].max() > 0.4
    assert losses[0] > 1.3
    assert losses[-1] < 1.1
    assert loads[-1].max() < 0.4
    assert loads[-1].min() > 0.1


@pytest.mark.parametrize("kind", ["task", "sentence", "token"])
def test_the_balance_loss_reaches_every_parameter_of_the_gate(kind: str) -> None:
    router, x, batch = collapsed(kind)
    gates = router.gates(x, batch)
    balance_loss(gates, router.share(batch, len(gates.probs))).backward()
    for name, parameter in router.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


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


def test_an_expert_is_in_use_if_a_unit_with_tokens_chooses_it() -> None:
    gates = gates_of([[0.9, 0.1, 0.0, 0.0], [0.0, 0.1, 0.9, 0.0]])
    assert experts_in_use(gates, EVEN).item() == 0.5
    assert experts_in_use(gates, torch.tensor([1.0, 0.0])).item() == 0.25
