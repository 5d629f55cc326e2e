"""A model in half precision: gates in fp32, everything else as asked, and it can be trained."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.models import COMBINATIONS, build_grouped, kept, net_input, rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("routing", COMBINATIONS, ids="/".join)
def test_a_half_precision_model_computes_its_gates_in_fp32(
    tmp_path, routing: tuple[str, str], dtype: torch.dtype
) -> None:
    flags = dict(zip(("encoder_moe_routing", "decoder_moe_routing"), routing))
    model = build_grouped(tmp_path, moe_freq=1, moe_expert_count=4, **flags).to(dtype).train()
    batch = net_input(rows())
    logits, extra = model(**batch)
    assert logits.dtype == dtype
    for stack in ("encoder", "decoder"):
        for record in extra["moe"][stack]:
            assert record.gates.probs.dtype == record.gates.weights.dtype == torch.float32
            assert record.share.dtype == torch.float32
    torch.cat(kept(logits, batch)).float().square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


def test_half_precision_is_close_to_full(tmp_path) -> None:
    model, batch = build_grouped(tmp_path, moe_freq=1, moe_expert_count=4), net_input(rows())
    exact = torch.cat(kept(model(**batch)[0], batch))
    rounded = torch.cat(kept(model.to(torch.bfloat16)(**batch)[0], batch)).float()
    assert (rounded - exact).abs().mean() < 0.02 * exact.abs().max()


def test_autocast_leaves_gates_in_fp32(tmp_path) -> None:
    model, batch = build_grouped(tmp_path, moe_freq=1, moe_expert_count=4), net_input(rows())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, extra = model(**batch)
    assert torch.cat(kept(logits, batch)).isfinite().all()
    assert all(record.gates.probs.dtype == torch.float32 for stack in extra["moe"].values() for record in stack)
