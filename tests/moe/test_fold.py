"""Folding and padding are exact up to rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from taskmoe_plugin.moe.fold import PARTS, fold, pad

Network = dict[str, Tensor]


def network(seed: int, width: int, inputs: int = 5, dtype: torch.dtype = torch.float32) -> Network:
    generator = torch.Generator().manual_seed(seed)
    shapes = (width, inputs), (width,), (inputs, width), (inputs,)
    return {part: torch.randn(shape, generator=generator).to(dtype) for part, shape in zip(PARTS, shapes)}


def folded_of(experts: list[Network], weights: list[float]) -> Network:
    return {part: fold(part, [expert[part] for expert in experts], weights) for part in PARTS}


def padded(ffn: Network, width: int) -> Network:
    return {part: pad(part, tensor, width) for part, tensor in ffn.items()}


def run(ffn: Network, x: Tensor, activation=torch.relu) -> Tensor:
    hidden = activation(F.linear(x, ffn["fc1.weight"], ffn["fc1.bias"]))
    return F.linear(hidden, ffn["fc2.weight"], ffn["fc2.bias"])


@pytest.mark.parametrize("activation", [torch.relu, F.gelu, torch.tanh, torch.cos], ids=lambda each: each.__name__)
@pytest.mark.parametrize("weights", [[0.3], [0.7, 0.3], [0.5, 0.3, 0.2]])
def test_a_folded_network_is_the_weighted_sum_of_its_experts(weights: list[float], activation) -> None:
    experts = [network(seed, width=7) for seed in range(len(weights))]
    x = torch.randn(11, 5, generator=torch.Generator().manual_seed(9))
    expected = sum(weight * run(expert, x, activation) for expert, weight in zip(experts, weights))
    folded = folded_of(experts, weights)
    assert folded["fc1.bias"].numel() == 7 * len(weights)
    torch.testing.assert_close(run(folded, x, activation), expected, rtol=1e-5, atol=1e-5)


def test_experts_of_different_widths_are_folded() -> None:
    experts, x = [network(0, width=3), network(1, width=8)], torch.randn(4, 5)
    folded = folded_of(experts, [0.6, 0.4])
    torch.testing.assert_close(run(folded, x), 0.6 * run(experts[0], x) + 0.4 * run(experts[1], x))


def test_the_rows_of_fc1_are_the_experts_own() -> None:
    experts = [network(0, width=3), network(1, width=3)]
    folded = folded_of(experts, [0.25, 0.75])
    assert torch.equal(folded["fc1.weight"][3:], experts[1]["fc1.weight"])
    assert torch.equal(folded["fc2.weight"][:, :3], experts[0]["fc2.weight"] * 0.25)
    assert torch.equal(folded["fc2.bias"], experts[0]["fc2.bias"] * 0.25 + experts[1]["fc2.bias"] * 0.75)


def test_scaled_weights_are_not_rounded_to_half_precision() -> None:
    expert = network(0, width=3, dtype=torch.float16)
    folded = folded_of([expert], [0.3])
    assert folded["fc1.weight"].dtype == torch.float16
    assert torch.equal(folded["fc2.weight"], expert["fc2.weight"].float() * 0.3)


@pytest.mark.parametrize("activation", [torch.relu, torch.cos], ids=["relu", "not zero at zero"])
def test_padding_changes_nothing_under_any_activation(activation) -> None:
    ffn, x = network(0, width=4), torch.randn(6, 5)
    wide = padded(ffn, 9)
    assert wide["fc1.bias"].numel() == 9
    torch.testing.assert_close(run(wide, x, activation), run(ffn, x, activation))
    assert not wide["fc1.weight"][4:].any()
    assert not wide["fc2.weight"][:, 4:].any()


def test_padding_to_the_own_width_changes_nothing() -> None:
    ffn = network(0, width=4)
    assert torch.equal(padded(ffn, 4)["fc1.weight"], ffn["fc1.weight"])
