"""Folding and padding are exact up to rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from taskmoe_plugin.subnet.fold import FeedForward, fold, pad


def network(seed: int, width: int, inputs: int = 5, dtype: torch.dtype = torch.float32) -> FeedForward:
    generator = torch.Generator().manual_seed(seed)
    shapes = (width, inputs), (width,), (inputs, width), (inputs,)
    return FeedForward(*(torch.randn(shape, generator=generator).to(dtype) for shape in shapes))


def run(ffn: FeedForward, x: Tensor, activation=torch.relu) -> Tensor:
    return F.linear(activation(F.linear(x, ffn.fc1_weight, ffn.fc1_bias)), ffn.fc2_weight, ffn.fc2_bias)


@pytest.mark.parametrize("activation", [torch.relu, F.gelu, torch.tanh, torch.cos], ids=lambda each: each.__name__)
@pytest.mark.parametrize("weights", [[0.3], [0.7, 0.3], [0.5, 0.3, 0.2]])
def test_a_folded_network_is_the_weighted_sum_of_its_experts(weights: list[float], activation) -> None:
    experts = [network(seed, width=7) for seed in range(len(weights))]
    x = torch.randn(11, 5, generator=torch.Generator().manual_seed(9))
    expected = sum(weight * run(expert, x, activation) for expert, weight in zip(experts, weights))
    folded = fold(experts, weights)
    assert folded.width == 7 * len(weights)
    torch.testing.assert_close(run(folded, x, activation), expected, rtol=1e-5, atol=1e-5)


def test_experts_of_different_widths_are_folded() -> None:
    experts, x = [network(0, width=3), network(1, width=8)], torch.randn(4, 5)
    folded = fold(experts, [0.6, 0.4])
    torch.testing.assert_close(run(folded, x), 0.6 * run(experts[0], x) + 0.4 * run(experts[1], x))


def test_the_rows_of_fc1_are_the_experts_own() -> None:
    experts = [network(0, width=3), network(1, width=3)]
    folded = fold(experts, [0.25, 0.75])
    assert torch.equal(folded.fc1_weight[3:], experts[1].fc1_weight)
    assert torch.equal(folded.fc2_weight[:, :3], experts[0].fc2_weight * 0.25)
    assert torch.equal(folded.fc2_bias, experts[0].fc2_bias * 0.25 + experts[1].fc2_bias * 0.75)


def test_scaled_weights_are_not_rounded_to_half_precision() -> None:
    expert = network(0, width=3, dtype=torch.float16)
    folded = fold([expert], [0.3])
    assert folded.fc1_weight.dtype == torch.float16
    assert torch.equal(folded.fc2_weight, expert.fc2_weight.float() * 0.3)


@pytest.mark.parametrize("activation", [torch.relu, torch.cos], ids=["relu", "not zero at zero"])
def test_padding_changes_nothing_under_any_activation(activation) -> None:
    ffn, x = network(0, width=4), torch.randn(6, 5)
    wide = pad(ffn, 9)
    assert wide.width == 9
    torch.testing.assert_close(run(wide, x, activation), run(ffn, x, activation))
    assert not wide.fc1_weight[4:].any()
    assert not wide.fc2_weight[:, 4:].any()


def test_padding_to_the_own_width_changes_nothing() -> None:
    ffn = network(0, width=4)
    assert torch.equal(pad(ffn, 4).fc1_weight, ffn.fc1_weight)
