"""--checkpoint-activations: activations are computed again in the backward pass, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from taskmoe_plugin.moe import Experts
from tests.helpers.models import ROUTED, build_grouped, kept, name_of, net_input, rows


def gradients(tmp_path, **flags):
    """The output and all gradients of a pass in training, and how often experts ran."""
    model = build_grouped(tmp_path, moe_freq=2, moe_expert_count=4, **flags).train()
    passes = []
    for module in model.modules():
        if isinstance(module, Experts):
            module.register_forward_pre_hook(lambda *_: passes.append(1))
    batch = net_input(rows(), extra=1)
    torch.manual_seed(5)
    logits, extra = model(**batch)
    balance = sum(
        (record.share @ record.gates.probs).square().sum() for each in extra["moe"].values() for record in each
    )
    (torch.cat(kept(logits, batch)).square().sum() + balance).backward()
    records = {stack: len(each) for stack, each in extra["moe"].items()}
    return logits, {name: each.grad for name, each in model.named_parameters()}, records, len(passes)


@pytest.mark.parametrize("routed", ROUTED, ids=name_of)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_outputs_and_gradients_are_the_same(tmp_path, routed: dict, dropout: float) -> None:
    flags = {**routed, "dropout": dropout, "activation_dropout": dropout}
    plain, again = (gradients(tmp_path, checkpoint_activations=each, **flags) for each in (False, True))
    torch.testing.assert_close(again[0], plain[0], rtol=0, atol=0)
    # The two passes add gradients up in another order.
    largest = max(float(each.abs().max()) for each in plain[1].values())
    torch.testing.assert_close(again[1], plain[1], rtol=0, atol=1e-6 * largest)
    # One record for each layer, also when the layer has run twice.
    assert again[2] == plain[2] == {"encoder": 1, "decoder": 1}
    assert (plain[3], again[3]) == (2, 4)


def test_evaluation_is_not_run_twice(tmp_path) -> None:
    model = build_grouped(tmp_path, checkpoint_activations=True, decoder_moe_routing="token")
    passes = []
    model.decoder.moe_layers[0].experts.register_forward_pre_hook(lambda *_: passes.append(1))
    model(**net_input(rows()))
    assert len(passes) == 1
