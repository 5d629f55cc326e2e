"""As many experts as their probabilities need to sum to a threshold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from taskmoe_plugin.moe import Choice, balance_loss, counted_usage, top_k_gates
from tests.helpers.models import PAIRS, build_model, kept, net_input, rows
from tests.helpers.moe import WIDTH, expert_output, make_batch, make_layer

PADDING = torch.tensor([[False, False, False, True], [False, False, False, False], [True, False, False, True]])
THRESHOLD, SCALE = 0.6, 1.5


def chosen_of(probs: list[float], threshold: float, k: int) -> dict[int, float]:
    """XMoE's choice (mlp_gating, Yang et al. 2024): an expert is chosen if those before it sum to less."""
    order = sorted(range(len(probs)), key=lambda expert: -probs[expert])[:k]
    found, total = {}, 0.0
    for expert in order:
        if total < threshold:
            found[expert] = probs[expert]
        total += probs[expert]
    return found


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9, 1.0])
def test_a_unit_has_the_best_experts_until_their_probabilities_reach_the_threshold(threshold: float) -> None:
    logits = 2 * torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    gates = top_k_gates(logits, 4, SCALE, threshold)
    counts = set()
    for probs, experts, weights in zip(logits.softmax(dim=1).tolist(), gates.experts.tolist(), gates.weights.tolist()):
        expected = chosen_of(probs, threshold, 4)
        counts.add(len(expected))
        assert experts[: len(expected)] == list(expected)
        assert weights == pytest.approx([SCALE * weight for weight in expected.values()] + [0.0] * (4 - len(expected)))
    assert len(counts) > 1 or threshold == 1


def test_balance_and_its_load_are_of_first_choices() -> None:
    logits = torch.randn(30, 5)
    gates, share = top_k_gates(logits, 3, threshold=0.9), torch.full((30,), 1 / 30)
    probs = logits.softmax(dim=1)
    first = torch.bincount(probs.argmax(dim=1), minlength=5) / 30
    assert torch.isclose(balance_loss(gates, share), 5 * (first * probs.mean(dim=0)).sum())


@pytest.fixture
def layer():
    layer = make_layer("token", experts=5, top_k=4)
    layer.moe.router.choice = Choice(SCALE, THRESHOLD)
    layer.moe.router.gate.weight.data *= 4
    return layer


def expected_output(layer, x: Tensor) -> Tensor:
    """By the definition; zeros at padding."""
    output = torch.zeros_like(x)
    for row, position in (~PADDING).nonzero().tolist():
        token = x[position, row]
        probs = (layer.moe.router.gate.weight @ token).softmax(dim=0)
        chosen = chosen_of(probs.tolist(), THRESHOLD, 4)
        output[position, row] = sum(
            SCALE * probs[expert] * expert_output(layer.moe.experts, expert, token) for expert in chosen
        )
    return output


def test_a_layer_computes_the_chosen_experts_of_each_token_and_their_gradients(layer) -> None:
    x = torch.randn(4, 3, WIDTH, requires_grad=True)
    inputs = [x, *layer.parameters()]
    found, expected = layer(x, make_batch(PADDING))[0], expected_output(layer, x)
    torch.testing.assert_close(found, expected)
    probe = torch.randn_like(found)
    gradients = [torch.autograd.grad((each * probe).sum(), inputs) for each in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_experts_compute_nothing_for_choices_that_are_none(layer) -> None:
    computed = []
    layer.moe.experts.register_forward_pre_hook(lambda module, args: computed.append(len(args[0])))
    _, routing = layer(torch.randn(4, 3, WIDTH), make_batch(PADDING))
    assert computed == [int((routing.weights > 0).sum())]
    assert 9 < computed[0] < 4 * 9


def test_every_token_counts_alike_in_what_is_said_of_usage(layer) -> None:
    batch = make_batch(PADDING)
    with torch.no_grad(), counted_usage([layer.moe], torch.zeros(3, dtype=torch.int64), 1) as [sums]:
        _, routing = layer(torch.randn(4, 3, WIDTH), batch)
    chosen = (routing.weights > 0).float()
    expected = torch.zeros(5)
    for experts, own in zip(routing.experts, 4 * chosen / chosen.sum(dim=1, keepdim=True)):
        expected.index_add_(0, experts, own)
    torch.testing.assert_close(sums[0, :, 1], expected)


@pytest.mark.parametrize("routing", [("source", "target"), ("pair", "token"), ("sentence", "group")], ids="/".join)
def test_a_row_alone_whose_experts_are_folded_gives_what_it_gives_in_a_mixed_batch(routing, tmp_path) -> None:
    encoder, decoder = routing
    groups = tmp_path / "groups.tsv"
    groups.write_text("".join(f"{pair}\t{pair[:2]}\n" for pair in PAIRS))
    model = build_model(
        encoder_moe_routing=encoder, decoder_moe_routing=decoder, moe_freq=1, moe_expert_count=6, moe_top_k=4,
        moe_threshold=THRESHOLD, moe_route_scale=SCALE, moe_task_groups=str(groups),
    ).double()  # fmt: skip
    counts = set()
    for stack in (model.encoder, model.decoder):
        if stack.tasks is not None:
            stack.tasks.gates.weight.data *= 6
            counts |= set((stack.tasks.gates().weights > 0).sum(dim=2).flatten().tolist())
    assert len(counts) > 1
    batch = rows(6)
    inputs = net_input(batch)
    with torch.no_grad():
        together = kept(model(**inputs)[0], inputs)
        for row, expected in zip(batch, together):
            own = net_input([row])
            torch.testing.assert_close(kept(model(**own)[0], own)[0], expected)
    model.train()
    with torch.no_grad():
        torch.testing.assert_close(kept(model(**inputs)[0], inputs), together)
