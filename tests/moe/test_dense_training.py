"""All experts in training, the best ones in evaluation (DS-MoE)."""

from __future__ import annotations

import pytest
import torch

from taskmoe_plugin.moe import Choice, TaskGates, TokenRouter, Tokens

DENSE = Choice(dense_training=True)


@pytest.mark.parametrize("top_k", [1, 2])
def test_gates_weigh_all_experts_in_training_and_the_best_in_evaluation(top_k: int) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(5, 4)
    probs = logits.softmax(dim=-1)
    torch.testing.assert_close(DENSE(logits, top_k, training=True).shares, probs)
    found = DENSE(logits, top_k, training=False)
    values, experts = probs.topk(top_k, dim=-1)
    expected = torch.zeros_like(probs).scatter(1, experts, values / values.sum(dim=-1, keepdim=True))
    torch.testing.assert_close(found.shares, expected)
    torch.testing.assert_close(Choice(2.0, dense_training=True)(logits, top_k, training=True).shares, 2 * probs)


def test_tasks_begin_without_a_head_start_and_every_logit_learns() -> None:
    gates = TaskGates(layers=1, tasks=3, width=8, experts=4, top_k=2, choice=DENSE)
    assert not gates.head_start.any()
    found = gates.train()()
    assert found.experts.size(-1) == 4
    (found.shares * torch.randn(1, 3, 4)).sum().backward()
    assert gates.weight.grad.abs().sum(dim=-1).gt(0).all()
    assert gates.eval()().experts.size(-1) == 2


def test_tokens_use_all_experts_in_training() -> None:
    router = TokenRouter(6, 4, 2, choice=DENSE)
    tokens = Tokens.from_padding(torch.zeros(2, 3, dtype=torch.bool))
    x = torch.randn(6, 6)
    assert router.train()(x, tokens).experts.shape == (6, 4)
    assert router.eval()(x, tokens).experts.shape == (6, 2)
