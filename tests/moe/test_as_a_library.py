"""What people do with the layer in programs of their own."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from taskmoe_plugin.moe import (
    Experts,
    MergingTaskGates,
    MoELayer,
    SentenceRouter,
    TaskGates,
    TokenRouter,
    Tokens,
    Usage,
    Warmup,
    balance_loss,
    merged_routings,
    z_loss,
)
from taskmoe_plugin.moe.quantize import quantize, round_weights
from taskmoe_plugin.moe.usage import counted_usage

WIDTH, COUNT = 6, 4
PADDING = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]]).bool()


def build(**options: object) -> MoELayer:
    torch.manual_seed(1)
    return MoELayer(COUNT, Experts(COUNT, WIDTH, 5, F.relu), TokenRouter(WIDTH, COUNT, 2), **options)  # type: ignore[arg-type]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 3, WIDTH, generator=torch.Generator().manual_seed(2))


def test_experts_and_router_are_of_one_number() -> None:
    with pytest.raises(ValueError, match="the router chooses among 8 experts, of which 4 are"):
        MoELayer(4, Experts(4, WIDTH, 5, F.relu), TokenRouter(WIDTH, 8, 2))
    with pytest.raises(ValueError, match="8 experts are in this process, of which all 4 should be"):
        MoELayer(4, Experts(8, WIDTH, 5, F.relu))


@pytest.mark.parametrize(
    "padding", [PADDING.t(), PADDING[:, :3].logical_and(PADDING[:, 1:2]), torch.zeros(3, 5).bool()]
)
def test_activations_of_other_tokens_are_refused(x: torch.Tensor, padding: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="activations"):
        build()(x, Tokens.from_padding(padding))


@pytest.mark.parametrize("padding", [PADDING, torch.zeros_like(PADDING)])
def test_the_output_may_be_changed_in_place(x: torch.Tensor, padding: torch.Tensor) -> None:
    layer, tokens = build(), Tokens.from_padding(padding)
    gradients = []
    for in_place in (False, True):
        layer.zero_grad()
        y, _ = layer(x, tokens)
        if in_place:
            y += x
            y.mul_(2)
        else:
            y = (y + x) * 2
        y.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("copied", [deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_scales_gradients_too(x: torch.Tensor, copied: object) -> None:
    layer, tokens = build(), Tokens.from_padding(PADDING)
    layer(x, tokens)[0].square().sum().backward()
    expected = [parameter.grad * 0.25 for parameter in layer.experts.parameters()]
    layer.zero_grad()
    layer.experts.scale_gradients(0.25)
    other = copied(layer)  # type: ignore[operator]
    other(x, tokens)[0].square().sum().backward()
    torch.testing.assert_close([parameter.grad for parameter in other.experts.parameters()], expected)


def test_frozen_experts_have_no_gradients_made(x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, tokens = build(), Tokens.from_padding(PADDING)
    x.requires_grad_()
    wanted = [x, layer.router.gate.weight]
    expected = torch.autograd.grad(layer(x, tokens)[0].square().sum(), wanted)
    layer.experts.requires_grad_(False)
    loss = layer(x, tokens)[0].square().sum()

    def refuse(*args: object, **options: object) -> torch.Tensor:
        raise AssertionError("the gradient of an expert's bias was made")

    monkeypatch.setattr(torch, "sum", refuse)
    torch.testing.assert_close(torch.autograd.grad(loss, wanted), expected)


@pytest.fixture
def half_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def test_shares_and_losses_are_fp32_whatever_the_default_is(half_by_default: None) -> None:
    x, tokens = torch.randn(400, 1, WIDTH), Tokens.from_padding(torch.zeros(1, 400).bool())
    for kind in (TokenRouter, SentenceRouter):
        routing = kind(WIDTH, COUNT, 2)(x.reshape(-1, WIDTH), tokens)
        assert routing.share.dtype is torch.float32
        torch.testing.assert_close(routing.share.sum(), torch.ones((), dtype=torch.float32))
        assert balance_loss(routing.gates, routing.share).dtype is torch.float32
        assert z_loss(routing.gates, routing.share).dtype is torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_weights_rounded_in_training_are_those_that_are_stored(dtype: torch.dtype, bits: int) -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(3))
    weight[:, 7] *= 8
    weight = weight.to(dtype)
    assert torch.equal(round_weights(weight, bits), quantize(weight, bits).dequantize().to(dtype))


def test_what_is_no_number_stays_none_when_it_is_quantised() -> None:
    assert quantize(torch.tensor([[float("nan"), 0.3, -0.2, 0.1]]), 8).dequantize().isnan().all()


def test_a_task_with_one_expert_begins_with_its_output_whatever_the_head_start() -> None:
    for ahead in (0.5, 2.0):
        gates = TaskGates(2, 3, 400, COUNT, 1, ahead=ahead)
        torch.testing.assert_close(gates().weights, torch.ones(2, 3, 1), atol=0.15, rtol=0)


def test_a_warm_up_begins_with_experts_that_there_are() -> None:
    with pytest.raises(ValueError, match="k = 8, experts = 4"):
        TaskGates(1, 3, 8, COUNT, 2, warmup=Warmup(10, 8))


def test_merged_experts_are_not_counted_by_token(x: torch.Tensor) -> None:
    tokens = Tokens.from_padding(PADDING)
    gates = MergingTaskGates(1, 3, COUNT, 2)()
    [routing] = merged_routings(gates, torch.arange(3), tokens.row, tokens, torch.full((3,), 1 / 3))
    layer = MoELayer(COUNT, Experts(COUNT, WIDTH, 5, F.relu))
    with counted_usage([layer], torch.arange(3), 3), pytest.raises(ValueError, match="merged=True"):
        layer(x, routing)
    usage = Usage.of_table(gates.layers()[0], torch.full((3,), 1 / 3), merged=True)
    torch.testing.assert_close(usage.load.sum(dim=1), torch.ones(3))
