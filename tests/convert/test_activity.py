"""What is counted of the tokens' choices."""

from __future__ import annotations

import torch

from taskmoe_plugin.convert.activity import Activity, counted_choices
from tests.helpers.moe import WIDTH, make_batch, make_layer

PADDING = torch.tensor([[False, False, False, True], [False, False, False, False]])


def test_choices_are_those_that_the_gate_makes_of_each_token() -> None:
    layer = make_layer("token", experts=5, top_k=2)
    inputs = [torch.randn(4, 2, WIDTH), torch.randn(4, 2, WIDTH)]
    with torch.no_grad(), counted_choices([layer.moe]) as [sums]:
        for x in inputs:
            layer(x, make_batch(PADDING))
    tokens = torch.cat([x.transpose(0, 1)[~PADDING] for x in inputs])
    probs = (tokens @ layer.moe.router.gate.weight.T).softmax(dim=1)
    order = probs.argsort(dim=1, descending=True)[:, :2].tolist()
    activity = Activity.of_sums(sums)
    for expert in range(5):
        first = [probs[token, expert].item() for token, choice in enumerate(order) if choice[0] == expert]
        assert torch.isclose(activity.first[expert], torch.tensor(len(first) / 14))
        assert torch.isclose(activity.confidence[expert], torch.tensor(sum(first) / max(len(first), 1)))
        chosen = sum(expert in choice for choice in order)
        assert torch.isclose(activity.chosen[expert], torch.tensor(chosen / 28))


def test_the_mean_counts_each_alike() -> None:
    one = Activity(torch.tensor([1.0, 0.0]), torch.tensor([0.8, 0.0]), torch.tensor([0.5, 0.5]))
    other = Activity(torch.tensor([0.5, 0.5]), torch.tensor([0.6, 0.4]), torch.tensor([0.1, 0.9]))
    mean = Activity.mean([one, other])
    assert torch.allclose(mean.first, torch.tensor([0.75, 0.25]))
    assert torch.allclose(mean.confidence, torch.tensor([0.7, 0.2]))
    assert torch.allclose(mean.chosen, torch.tensor([0.3, 0.7]))
