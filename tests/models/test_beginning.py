"""Where a model with experts begins: with outputs of the size that a dense network of the same work has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.models import build_model

WIDTH, FFN = 64, 256


def output_power(seed: int, **flags: Any) -> float:
    """The mean square of what the task network of each language gives for inputs of variance 1."""
    model = build_model(
        encoder_embed_dim=WIDTH, encoder_ffn_embed_dim=FFN, encoder_layers=1, encoder_moe_freq=1, seed=seed, **flags
    )
    x = torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ids = torch.tensor([1])
        padding = torch.zeros(1, 1, dtype=torch.bool)
        outputs = []
        for language in (1, 2, 3):
            (network,) = model.encoder.route(padding, language * ids, ids).layers
            for bias in ("fc1_bias", "fc2_bias"):
                getattr(network, bias).zero_()
            outputs.append(network(x).square().mean())
        return float(torch.stack(outputs).mean())


def dense_power(seed: int) -> float:
    torch.manual_seed(seed)
    fc1, fc2 = torch.nn.Linear(WIDTH, FFN, bias=False), torch.nn.Linear(FFN, WIDTH, bias=False)
    x = torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(0))
    return float(fc2(fc1(x).relu()).square().mean())


def mean_power(power: Any, **flags: Any) -> float:
    return sum(power(seed, **flags) for seed in range(5)) / 5


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ({"moe_combine": "weights"}, 1),
        ({"moe_combine": "weights", "moe_top_k": 3}, 1),
        ({"moe_route_scale": 2.0, "moe_expert_ffn_dim": FFN // 2}, 1),
        ({"moe_route_scale": 4.0, "moe_expert_ffn_dim": FFN // 4, "moe_top_k": 4}, 1),
        ({"moe_top_k": 1}, 1),
        ({"moe_expert_ffn_dim": FFN // 2}, 0.5),
    ],
    ids=str,
)
def test_a_layer_begins_with_outputs_of_a_dense_networks_size(flags: dict[str, Any], size: float) -> None:
    assert mean_power(output_power, **flags) == pytest.approx(size * mean_power(dense_power), rel=0.15)
