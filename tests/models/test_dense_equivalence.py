"""One expert with top-1 is the stock Transformer: the same logits and gradients."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.helpers.models import ROUTED, build_grouped, build_model, kept, name_of, net_input, rows


def dense_name(name: str) -> str:
    """The stock model's name of a parameter of a model with one expert."""
    return re.sub(r"moe\.experts\.(fc[12])_", r"\1.", name)


def gate_name(name: str) -> bool:
    return ".moe.router." in name or ".tasks." in name


def only_expert(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A parameter of the stock model: the only expert of a stack."""
    return tensor[0] if ".moe.experts." in name else tensor


# Those that are possible with one expert.
ALONE = [each for each in ROUTED if not each.keys() & {"moe_top_k", "moe_language_experts"}]


@pytest.mark.parametrize("routed", ALONE, ids=name_of)
@pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_one_expert_equals_the_stock_transformer(
    tmp_path, routed: dict[str, Any], pre_norm: bool, activation: str
) -> None:
    shared = {
        "encoder_normalize_before": pre_norm, "decoder_normalize_before": pre_norm, "activation_fn": activation,
        "share_all_embeddings": True,
    }  # fmt: skip
    moe = build_grouped(tmp_path, moe_freq=1, moe_expert_count=1, moe_top_k=1, **routed, **shared).double()
    dense = build_model("transformer", seed=1, **shared).double()
    weights = {
        dense_name(name): only_expert(name, each) for name, each in moe.state_dict().items() if not gate_name(name)
    }
    dense.load_state_dict(weights)

    batch = net_input(rows())
    plain = {name: batch[name] for name in ("src_tokens", "src_lengths", "prev_output_tokens")}
    outputs = [torch.cat(kept(model(**each)[0], batch)) for model, each in ((moe, batch), (dense, plain))]
    torch.testing.assert_close(*outputs, atol=1e-10, rtol=1e-10)

    for output in outputs:
        output.square().sum().backward()
    gradients = {
        dense_name(name): only_expert(name, each.grad) for name, each in moe.named_parameters() if not gate_name(name)
    }
    expected = {name: each.grad for name, each in dense.named_parameters()}
    assert gradients.keys() == expected.keys()
    torch.testing.assert_close(gradients, expected, atol=1e-10, rtol=1e-8)


def test_the_comparison_would_notice_a_different_expert(tmp_path) -> None:
    moe = build_grouped(tmp_path, moe_freq=1, moe_expert_count=1, moe_top_k=1)
    batch = net_input(rows())
    before = moe(**batch)[0]
    with torch.no_grad():
        moe.encoder.layers[1].moe.experts.fc2_bias.add_(0.1)
    assert not torch.allclose(before, moe(**batch)[0])


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_moe_freq_0_leaves_a_stack_dense(stack: str) -> None:
    model = build_model(**{f"{stack}_moe_freq": 0})
    other = "decoder" if stack == "encoder" else "encoder"
    names = [name for name in model.state_dict() if "moe" in name]
    assert names
    assert all(name.startswith(f"{other}.layers.1.moe.") for name in names)
    assert f"{stack}.layers.1.fc1.weight" in model.state_dict()
    records = model(**net_input(rows()))[1]["moe"]
    assert [len(records[stack]), len(records[other])] == [0, 1]


def test_moe_freq_0_in_both_stacks_is_the_stock_transformer() -> None:
    model, dense = build_model(moe_freq=0), build_model("transformer", seed=1)
    assert model.state_dict().keys() == dense.state_dict().keys()
    dense.load_state_dict(model.state_dict())
    batch = net_input(rows())
    plain = {name: batch[name] for name in ("src_tokens", "src_lengths", "prev_output_tokens")}
    assert torch.equal(model(**batch)[0], dense(**plain)[0])
    # It needs no language ids either.
    assert torch.equal(model(**plain)[0], dense(**plain)[0])


@pytest.mark.parametrize(("freq", "expected"), [(1, {0, 1, 2, 3, 4}), (2, {1, 3}), (3, {2}), (5, {4})])
def test_every_freq_th_layer_is_an_moe_layer(freq: int, expected: set[int]) -> None:
    model = build_model(moe_freq=freq, encoder_layers=5, decoder_layers=5)
    for stack in ("encoder", "decoder"):
        found = {int(re.findall(r"\d+", name)[0]) for name in getattr(model, stack).state_dict() if ".moe." in name}
        assert found == expected
