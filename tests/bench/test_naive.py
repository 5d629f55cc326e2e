"""fairscale's layer in place of ours: the same function where it drops nothing, and what it cannot do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from taskmoe_plugin.bench.naive import NaiveLayer, start_group
from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.moe import Experts, MoELayer, TokenRouter, Tokens

WIDTH = 8


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    start_group()
    yield
    dist.destroy_process_group()


def layer(experts: int, top_k: int) -> MoELayer:
    torch.manual_seed(0)
    networks = Experts(experts, WIDTH, 16, torch.relu)
    return MoELayer(experts, networks, TokenRouter(WIDTH, experts, top_k)).eval()


@torch.no_grad()
def test_it_computes_what_our_layer_does_where_every_token_uses_all_experts() -> None:
    # Its second expert is drawn at random: with two of them there is no choice.
    ours = layer(2, 2)
    x = torch.randn(3, 3, WIDTH)  # nine tokens, which it must fill up
    expected, _ = ours(x, Tokens.from_padding(torch.zeros(3, 3, dtype=torch.bool)))
    output, record = NaiveLayer(ours)(x, None)
    torch.testing.assert_close(output, expected)
    assert record is None


@torch.no_grad()
def test_it_shares_the_memory_of_the_weights() -> None:
    ours = layer(4, 2)
    naive = NaiveLayer(ours)
    before = naive(torch.ones(1, 4, WIDTH), None)[0]
    ours.experts.scale_(0.0)
    assert before.abs().max() > 0
    assert naive(torch.ones(1, 4, WIDTH), None)[0].abs().max() == 0


def test_it_gives_a_token_two_experts() -> None:
    with pytest.raises(UsageError, match="--systems naive: fairscale's gate gives a token two experts"):
        NaiveLayer(layer(4, 1))
