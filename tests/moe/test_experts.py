"""Stacked experts: each is a feed-forward network, all have gradients, some can be folded to one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from taskmoe_plugin.moe import Experts, Groups
from tests.helpers.moe import expert_output

COUNTS = [2, 0, 3, 1]
GROUPS = Groups.of_counts(COUNTS, torch.device("cpu"))


def make_experts(activation=torch.relu, dropout: float = 0.0) -> Experts:
    torch.manual_seed(0)
    return Experts(len(COUNTS), 6, 8, activation, dropout).double()


@pytest.mark.parametrize("activation", [torch.relu, F.gelu, torch.tanh, lambda x: x])
def test_every_expert_computes_its_rows(activation) -> None:
    experts, x = make_experts(activation), torch.randn(sum(COUNTS), 6, dtype=torch.float64)
    expected = [expert_output(experts, index, part) for index, part in enumerate(x.split(COUNTS))]
    torch.testing.assert_close(experts(x, GROUPS), torch.cat(expected))


@pytest.mark.parametrize("rows", [COUNTS, [0, 0, 0, 0]], ids=str)
def test_every_parameter_has_a_gradient_zero_for_experts_without_rows(rows: list[int]) -> None:
    experts = make_experts()
    x = torch.randn(sum(rows), 6, dtype=torch.float64)
    experts(x, Groups.of_counts(rows, x.device)).sum().backward()
    assert len(list(experts.parameters())) == 4
    for name, parameter in experts.named_parameters():
        for expert, count in enumerate(rows):
            assert parameter.grad[expert].any() == (count > 0), (name, expert)


def test_dropout_is_inside_the_experts_and_only_in_training() -> None:
    experts, x = make_experts(dropout=0.5), torch.randn(sum(COUNTS), 6, dtype=torch.float64)
    assert not torch.equal(experts.train()(x, GROUPS), experts(x, GROUPS))
    assert torch.equal(experts.eval()(x, GROUPS), experts(x, GROUPS))


def test_experts_start_like_linear_layers_and_different_from_each_other() -> None:
    experts = Experts(3, 64, 256, torch.relu)
    assert experts.fc1_weight.abs().max() <= 64**-0.5
    assert experts.fc2_weight.abs().max() <= 256**-0.5
    assert experts.fc1_weight.std().item() == pytest.approx((64 * 3) ** -0.5, rel=0.02)
    assert not torch.equal(experts.fc1_weight[0], experts.fc1_weight[1])


def test_processes_that_hold_different_experts_start_as_one_that_holds_all() -> None:
    torch.manual_seed(0)
    whole = Experts(4, 6, 8, torch.relu)
    after = torch.rand(1)
    for held in (range(2), range(2, 4)):
        torch.manual_seed(0)
        part = Experts(4, 6, 8, torch.relu, held=held)
        assert torch.equal(torch.rand(1), after)
        for name, parameter in part.named_parameters():
            assert torch.equal(parameter, whole.get_parameter(name)[held.start : held.stop])


@pytest.mark.parametrize("chosen", [[2], [3, 0], [1, 2, 0]], ids=str)
def test_folded_experts_are_one_network_with_the_weighted_sum_of_their_outputs(chosen: list[int]) -> None:
    experts, x = make_experts(F.gelu), torch.randn(5, 6, dtype=torch.float64)
    weights = torch.rand(len(chosen), dtype=torch.float64)
    expected = sum(weight * expert_output(experts, index, x) for index, weight in zip(chosen, weights))
    network = experts.fold(chosen, weights)
    assert network.fc1_weight.shape == (8 * len(chosen), 6)
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_folded_network_has_the_type_of_the_experts(dtype: torch.dtype) -> None:
    experts = make_experts().to(dtype)
    network = experts.fold([0, 1], torch.tensor([0.5, 0.5]))
    assert {each.dtype for each in (network.fc1_weight, network.fc2_weight, network.fc2_bias)} == {dtype}
    assert network(torch.randn(3, 6, dtype=dtype)).dtype == dtype
