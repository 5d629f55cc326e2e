"""Dispatch and combine against a loop over choices and tokens, for any routing hypothesis can think of."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmoe_plugin.moe import (
    Gates,
    LocalDispatcher,
    Routing,
    Tokens,
    drop_beyond,
    expert_capacity,
    sort_assignments,
)
from taskmoe_plugin.moe.kernels import gather_weighted
from tests.helpers.moe import make_layer

WIDTH = 3


@dataclass
class Example:
    """Activations of a padded batch, experts and weights of its tokens."""

    x: Tensor
    tokens: Tokens
    experts: Tensor
    weights: Tensor
    matrices: Tensor
    factor: float

    @property
    def count(self) -> int:
        return self.matrices.size(0)

    @property
    def routing(self) -> Routing:
        gates = Gates(None, torch.empty(0), self.experts, self.weights)
        share = torch.empty(0)
        assignments = sort_assignments(self.experts, self.count, self.tokens.index)
        return Routing(
            gates=gates,
            share=share,
            tokens=self.tokens,
            experts=self.experts,
            weights=self.weights,
            assignments=assignments,
        )

    def expert(self, index: int, part: Tensor) -> Tensor:
        """Experts that differ from each other, and whose output is not zero for input zero."""
        return (part @ self.matrices[index] + self.matrices[index][0]).sin()

    def leaves(self) -> list[Tensor]:
        """The tensors that gradients are taken of."""
        return [self.x, self.weights, self.matrices]


@st.composite
def examples(draw: st.DrawFn) -> Example:
    count = draw(st.integers(1, 6), label="experts")
    padding = torch.tensor(draw(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=3)))
    tokens = Tokens.from_padding(padding)
    number = tokens.row.numel()
    k = draw(st.integers(1, count), label="k")
    # Choosing from few experts leaves others empty.
    used = draw(st.integers(k, count), label="experts in use")
    experts = [draw(st.permutations(range(used)))[:k] for _ in range(number)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16), label="seed"))
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((padding.numel(), WIDTH), (number, k), (count, WIDTH, WIDTH))
    ]
    factor = draw(st.sampled_from([0.0, 0.0, 0.3, 0.7, 1.0, 2.0]), label="capacity factor")
    return Example(tensors[0], tokens, torch.tensor(experts, dtype=torch.int64).view(number, k), *tensors[1:], factor)


def loop(example: Example) -> tuple[Tensor, list[list[tuple[int, int]]]]:
    """One after the other: first choices of all tokens in turn, then second ones; a full expert takes no more.

    Returns:
        The outputs, and for each expert the assignments (choice, token) that it served.
    """
    number, k = example.experts.shape
    capacity = expert_capacity(example.factor, number, example.count, k) if example.factor else number * k
    places = range(number) if example.tokens.index is None else example.tokens.index.tolist()
    output = [torch.zeros(WIDTH, dtype=torch.float64) for _ in example.x]
    served: list[list[tuple[int, int]]] = [[] for _ in range(example.count)]
    turn = sorted(range(number), key=lambda token: int(example.tokens.row[token]))
    for choice in range(k):
        for token in turn:
            expert, place = int(example.experts[token, choice]), places[token]
            if len(served[expert]) < capacity:
                served[expert].append((choice, token))
                result = example.expert(expert, example.x[place : place + 1])[0]
                output[place] = output[place] + example.weights[token, choice] * result
    return torch.stack(output), served


def dispatched(example: Example) -> tuple[Tensor, Routing]:
    dispatcher = LocalDispatcher()
    rows, sent = dispatcher.dispatch(example.x, example.routing, example.count, example.factor)
    assert sent.groups.ends[-1] == rows.size(0)
    parts = rows.split(torch.diff(sent.groups.ends, prepend=torch.zeros(1, dtype=torch.int32)).tolist())
    outputs = torch.cat([example.expert(index, part) for index, part in enumerate(parts)])
    return dispatcher.combine(outputs, sent), sent.routing


@given(examples())
def test_outputs_equal_a_loop_over_choices_and_tokens(example: Example) -> None:
    output, served = loop(example)
    ours, routing = dispatched(example)
    torch.testing.assert_close(ours, output)
    dropped = example.experts.numel() - sum(map(len, served))
    assert float(routing.dropped) == pytest.approx(dropped / max(example.experts.numel(), 1))


@given(examples())
def test_gradients_equal_those_of_the_loop(example: Example) -> None:
    probe = torch.arange(1.0, 1 + example.x.numel(), dtype=torch.float64).view_as(example.x)
    gradients = []
    for output in (dispatched(example)[0], loop(example)[0]):
        # Without any token, nothing leads back to the experts.
        total = (output * probe).sum() + 0 * sum(leaf.sum() for leaf in example.leaves())
        gradients.append(torch.autograd.grad(total, example.leaves()))
    torch.testing.assert_close(*gradients)


@given(examples())
def test_sorted_assignments_are_a_permutation_expert_by_expert(example: Example) -> None:
    found = sort_assignments(example.experts, example.count)
    flat = example.experts.flatten()
    assert sorted(found.order.tolist()) == list(range(flat.numel()))
    assert flat[found.order].tolist() == sorted(flat.tolist())
    assert found.order[found.place.flatten()].tolist() == list(range(flat.numel()))
    counts = torch.bincount(flat, minlength=example.count)
    assert found.ends.tolist() == counts.cumsum(0).tolist()


@given(examples())
def test_dropless_every_token_gets_all_its_k_experts(example: Example) -> None:
    found = sort_assignments(example.experts, example.count)
    assert found.kept is None
    k = example.experts.size(1)
    assert torch.bincount(found.order // k, minlength=len(example.experts)).tolist() == [k] * len(example.experts)


def test_first_choices_are_served_before_the_second_choices_of_earlier_tokens() -> None:
    experts = torch.tensor([[0, 1], [1, 0], [1, 0]])
    found = drop_beyond(sort_assignments(experts, 2), experts, torch.arange(3), capacity=2)
    # Expert 0 serves token 0's first choice, then token 1's second; expert 1 the first choices of tokens 1 and 2.
    assert found.kept.tolist() == [[True, False], [True, True], [True, False]]
    assert found.ends.tolist() == [2, 4]


def test_in_random_order_every_token_is_as_likely_to_be_served_first_choices_before_second_ones() -> None:
    layer = make_layer("token", experts=2, top_k=2, width=WIDTH, capacity_factor=0.75, random_priority=True).moe
    # All tokens have expert 0 first, so that it has room for 6 of 8 first choices, and the other for 6 second ones.
    layer.router.gate.weight.data = torch.tensor([[1.0], [-1.0]]).expand(2, WIDTH).clone()
    x, tokens = torch.ones(4, 2, WIDTH), Tokens.from_padding(torch.zeros(2, 4, dtype=torch.bool))
    torch.manual_seed(0)
    served = torch.zeros(8, 2)
    for _ in range(400):
        served += (layer(x, tokens)[1].weights > 0).float()
    assert served.sum(dim=0).tolist() == [400 * 6, 400 * 6]
    # Six standard deviations of a share of 400 draws.
    assert (served / 400 - 0.75).abs().max() < 6 * (0.75 * 0.25 / 400) ** 0.5
    # In evaluation, and without the flag, the first ones are served.
    layer.eval_capacity_factor = 0.75
    assert (layer.eval()(x, tokens)[1].weights > 0)[:, 0].view(4, 2)[-1].tolist() == [True, False]


def test_assignments_of_other_processes_are_served_before() -> None:
    experts = torch.tensor([[0], [0], [1]])
    ahead = torch.tensor([[1, 2]])
    found = drop_beyond(sort_assignments(experts, 2), experts, torch.arange(3), capacity=2, ahead=ahead)
    assert found.kept.flatten().tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("factor", "tokens", "experts", "k", "expected"),
    [
        (1.0, 64, 8, 1, 8),  # Switch Transformer, equation 3
        (1.25, 64, 8, 1, 10),
        (1.0, 64, 8, 2, 16),  # GShard: 2·tokens / experts
        (1.0, 65, 8, 1, 9),  # rounded up
        (0.5, 1, 8, 1, 1),  # never less than one
        (2.0, 3, 4, 4, 6),
        (1.0, 0, 4, 2, 0),
    ],
)
def test_capacity_is_factor_k_tokens_by_experts_rounded_up(
    factor: float, tokens: int, experts: int, k: int, expected: int
) -> None:
    assert expert_capacity(factor, tokens, experts, k) == expected


def test_a_layer_with_fewer_experts_than_the_gates_of_its_stack_has_as_many_groups_as_experts() -> None:
    experts = torch.tensor([[0, 1], [1, 0]])
    tokens = Tokens.from_padding(torch.zeros(1, 2, dtype=torch.bool))
    weights = torch.full((2, 2), 0.5)
    routing = Routing(
        gates=Gates(None, torch.empty(0), experts, weights),
        share=torch.empty(0),
        tokens=tokens,
        experts=experts,
        weights=weights,
        assignments=sort_assignments(experts, 5),
    )
    _, sent = LocalDispatcher().dispatch(torch.ones(2, WIDTH), routing, 2, 0.0)
    assert sent.groups.ends.tolist() == [2, 4]
    assert sent.groups.members(torch.float32).shape == (4, 2)


@pytest.mark.parametrize("count", [2**15 - 1, 2**15, 2**16])
def test_experts_of_any_number_are_sorted(count: int) -> None:
    experts = torch.tensor([[count - 1], [0], [count - 2]])
    found = sort_assignments(experts, count)
    assert found.order.tolist() == [1, 2, 0]
    assert found.ends[[0, count - 3, count - 2, count - 1]].tolist() == [1, 1, 2, 3]


def test_weights_of_what_was_left_out_have_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, grad, y = torch.rand(3, 2), torch.randn(3, 1, 4), torch.randn(4, 4)
    order, row = torch.tensor([0, 2, 3, 5, 1, 4]), torch.tensor([0, 1, 1, 2, 0, 2])
    # What memory happens to hold.
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, torch.nan))
    _, found = gather_weighted(grad, row, weights, order, y, True)
    assert found is not None
    assert not found.view(-1)[[1, 4]].any()
    expected = (grad[:, 0][row[:4]] * y).sum(dim=1)
    torch.testing.assert_close(found.view(-1)[order[:4]], expected)
