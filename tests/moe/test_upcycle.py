"""What experts that are made of a dense network compute and learn."""

from __future__ import annotations

import pytest
import torch

from taskmoe_plugin.moe import Experts, Groups
from taskmoe_plugin.moe.fold import PARTS
from taskmoe_plugin.moe.upcycle import Upcycling

WIDTH, HIDDEN = 6, 12


def dense_network() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (HIDDEN, WIDTH), (HIDDEN,), (WIDTH, HIDDEN), (WIDTH,)
    return {
        part: torch.randn(shape, generator=generator, dtype=torch.double).requires_grad_()
        for part, shape in zip(PARTS, shapes)
    }


def upcycled(how: Upcycling, dense: dict[str, torch.Tensor]) -> Experts:
    experts = Experts(how.experts, WIDTH, HIDDEN // how.slices, torch.relu).double()
    with torch.no_grad():
        for part, each in dense.items():
            getattr(experts, part.replace(".", "_")).copy_(torch.stack(list(how.parts(part, each))))
    return experts


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("total", [1.0, 3.0])
def test_weighted_experts_compute_what_the_network_does_and_gradients_are_as_said(slices: int, total: float) -> None:
    how = Upcycling(experts=3, top_k=3, slices=slices, total=total)
    dense = dense_network()
    experts = upcycled(how, dense)
    x = torch.randn(5, WIDTH, dtype=torch.double)
    network = {part.replace(".", "_"): each for part, each in dense.items()}
    expected = torch.relu(x @ network["fc1_weight"].T + network["fc1_bias"]) @ network["fc2_weight"].T
    expected = expected + network["fc2_bias"]
    found = sum(
        total / 3 * experts(x, Groups.of_counts([5 * (at == each) for at in range(3)], x.device)) for each in range(3)
    )
    torch.testing.assert_close(found, expected)
    # Every token uses every expert, so that the mean gradient is that of each.
    for output in (found, expected):
        output.sin().sum().backward()
    for part, each in dense.items():
        gradients = torch.stack(list(how.gradients(part, each.grad)))
        torch.testing.assert_close(getattr(experts, part.replace(".", "_")).grad, gradients)
        squares = torch.stack(list(how.gradients(part, each.grad.square(), 2)))
        torch.testing.assert_close(squares, gradients.square())


def test_a_router_has_the_same_score_for_all_slices_of_a_network() -> None:
    weight = torch.randn(6, 4)
    assert torch.equal(Upcycling(6, 2, 2, 1.0).router(weight), weight[[0, 1, 2, 0, 1, 2]])
    assert torch.equal(Upcycling(6, 2, 1, 1.0).router(weight), weight)
    assert Upcycling(6, 1, 1, 1 / 6).router(weight).abs().max() < 1e-4
