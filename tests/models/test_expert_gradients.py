"""Gradients of experts relative to the exact ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.models import build_model, net_input, rows

FLAGS = {"encoder_moe_routing": "token", "decoder_moe_routing": "target", "moe_expert_count": 4}
SCALE = 4**0.5  # √E


def train(model, updates: int = 1, clip: float = 0.0, **adam: float) -> dict[str, Tensor]:
    """Train with Adam; returns the gradients of the last update."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, **adam)
    for seed in range(updates):
        optimizer.zero_grad()
        logits = model(**net_input(rows(6, seed=seed)))[0]
        logits.square().mean().backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return {name: each.grad for name, each in model.named_parameters()}


def two_models() -> list:
    return [build_model(**FLAGS, moe_expert_grad_scale=scale).double() for scale in (1.0, SCALE)]


def test_gradients_of_experts_are_scaled_and_no_others() -> None:
    exact, scaled = (train(model) for model in two_models())
    assert any(".experts." in name for name in exact)
    for name, gradient in exact.items():
        torch.testing.assert_close(scaled[name], gradient * (SCALE if ".experts." in name else 1))


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_adam_undoes_the_scale_unless_gradients_are_clipped(clip: float) -> None:
    one, other = models = two_models()
    for model in models:
        train(model, 4, clip, eps=1e-30)
    same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(one.parameters(), other.parameters())]
    assert all(same) == (not clip)
