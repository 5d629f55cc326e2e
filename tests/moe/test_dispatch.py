"""Dispatch and combine against a loop over choices and tokens, for any routing hypothesis can think of."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmoe_plugin.moe import expert_capacity, make_dispatch, run_experts

WIDTH = 3


@dataclass
class Routing:
    """Tokens, experts and weights of one example."""

    x: Tensor
    experts: Tensor
    weights: Tensor
    matrices: Tensor
    capacity: int | None

    @property
    def count(self) -> int:
        return self.matrices.size(0)

    def functions(self) -> dict:
        """Experts that differ from each other, and whose output is not zero for input zero."""
        return {index: lambda part, matrix=matrix: (part @ matrix + matrix[0]).sin()
                for index, matrix in enumerate(self.matrices)}  # fmt: skip

    def leaves(self) -> list[Tensor]:
        """The tensors that gradients are taken of."""
        return [self.x, self.weights, self.matrices]


@st.composite
def routings(draw: st.DrawFn, dropless: bool = False) -> Routing:
    count = draw(st.integers(1, 6), label="experts")
    tokens = draw(st.integers(0, 12), label="tokens")
    k = draw(st.integers(1, count), label="k")
    # Choosing from few experts leaves others empty.
    used = draw(st.integers(k, count), label="experts in use")
    experts = [draw(st.permutations(range(used)))[:k] for _ in range(tokens)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16), label="seed"))
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((tokens, WIDTH), (tokens, k), (count, WIDTH, WIDTH))
    ]
    capacity = None if dropless else draw(st.one_of(st.none(), st.integers(0, tokens + 1)), label="capacity")
    return Routing(tensors[0], torch.tensor(experts, dtype=torch.int64).view(tokens, k), *tensors[1:], capacity)


def loop(routing: Routing) -> tuple[Tensor, list[list[tuple[int, int]]]]:
    """The same by the book: first choices of all tokens in order, then second ones; a full expert takes no more.

    Returns:
        The outputs, and for each expert the assignments (choice, token) that it served.
    """
    functions = routing.functions()
    output = [torch.zeros(WIDTH, dtype=torch.float64) for _ in routing.x]
    served: list[list[tuple[int, int]]] = [[] for _ in range(routing.count)]
    for choice in range(routing.experts.size(1)):
        for token, expert in enumerate(routing.experts[:, choice].tolist()):
            if routing.capacity is None or len(served[expert]) < routing.capacity:
                served[expert].append((choice, token))
                result = functions[expert](routing.x[token : token + 1])[0]
                output[token] = output[token] + routing.weights[token, choice] * result
    return torch.stack(output) if output else routing.x.new_zeros(0, WIDTH), served


def dispatched(routing: Routing) -> Tensor:
    dispatch = make_dispatch(routing.experts, routing.weights, routing.count, routing.capacity)
    return run_experts(routing.x, dispatch, routing.functions())


@given(routings())
def test_experts_outputs_equal_a_loop_over_choices_and_tokens(routing: Routing) -> None:
    torch.testing.assert_close(dispatched(routing), loop(routing)[0])


@given(routings())
def test_gradients_equal_those_of_the_loop(routing: Routing) -> None:
    probe = torch.arange(1.0, 1 + routing.x.numel(), dtype=torch.float64).view_as(routing.x)
    gradients = []
    for output in (dispatched(routing), loop(routing)[0]):
        # Without any token, nothing leads back to the experts.
        total = (output * probe).sum() + 0 * sum(leaf.sum() for leaf in routing.leaves())
        gradients.append(torch.autograd.grad(total, routing.leaves()))
    torch.testing.assert_close(*gradients)


@given(routings())
def test_a_dispatch_lists_the_assignments_expert_by_expert_in_order_of_service(routing: Routing) -> None:
    dispatch = make_dispatch(routing.experts, routing.weights, routing.count, routing.capacity)
    served = loop(routing)[1]
    assert dispatch.counts == [len(each) for each in served]
    assert dispatch.token.tolist() == [token for each in served for _, token in each]
    expected = [routing.weights[token, choice].item() for each in served for choice, token in each]
    assert dispatch.weight.tolist() == expected
    assert dispatch.dropped == routing.experts.numel() - len(expected)


@given(routings(dropless=True))
def test_without_a_capacity_every_token_gets_all_its_k_experts(routing: Routing) -> None:
    dispatch = make_dispatch(routing.experts, routing.weights, routing.count)
    assert dispatch.dropped == 0
    assert torch.bincount(dispatch.token, minlength=len(routing.x)).tolist() == [routing.experts.size(1)] * len(
        routing.x
    )


@given(routings())
def test_an_expert_runs_once_if_it_has_tokens_and_never_without(routing: Routing) -> None:
    calls = dict.fromkeys(range(routing.count), 0)

    def counting(index: int):
        def expert(part: Tensor) -> Tensor:
            calls[index] += 1
            assert len(part) > 0
            return part

        return expert

    dispatch = make_dispatch(routing.experts, routing.weights, routing.count, routing.capacity)
    run_experts(routing.x, dispatch, {index: counting(index) for index in calls})
    assert list(calls.values()) == [int(count > 0) for count in dispatch.counts]


def test_first_choices_are_served_before_the_second_choices_of_earlier_tokens() -> None:
    experts = torch.tensor([[0, 1], [1, 0], [1, 0]])
    dispatch = make_dispatch(experts, torch.ones(3, 2), num_experts=2, capacity=2)
    assert dispatch.counts == [2, 2]
    # Expert 0 serves token 0's first choice, then token 1's second; expert 1 the first choices of tokens 1 and 2.
    assert dispatch.token.tolist() == [0, 1, 1, 2]
    assert dispatch.dropped == 2


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


def test_rows_without_an_assignment_are_zero() -> None:
    dispatch = make_dispatch(torch.tensor([[1], [0]]), torch.ones(2, 1), num_experts=2, capacity=0)
    output = run_experts(torch.ones(2, WIDTH), dispatch, {0: torch.sin, 1: torch.cos})
    assert output.tolist() == [[0.0] * WIDTH] * 2
