"""Low-rank language matrices: y = (W + V[source] · F[target]) x + b for each row."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from taskmoe_plugin.moe import CurrentLanguages, Languages, LowRankLinear

COUNT, RANK, INPUTS, OUTPUTS = 4, 2, 5, 3
SOURCE, TARGET = torch.tensor([1, 2, 1, 4]), torch.tensor([3, 1, 3, 2])


def make_map(dtype: torch.dtype = torch.float64) -> LowRankLinear:
    """A map with no zeros in it."""
    torch.manual_seed(0)
    made = LowRankLinear(nn.Linear(INPUTS, OUTPUTS), COUNT, RANK, CurrentLanguages(), torch.Generator())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made.to(dtype)


def run(made: LowRankLinear, x: torch.Tensor, source: torch.Tensor, target: torch.Tensor, look: bool) -> torch.Tensor:
    with made.current.set(Languages.of_rows(source, target, COUNT, made.weight.dtype, look)):
        return made(x)


def by_the_formula(made: LowRankLinear, x: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    rows = []
    for row, (s, t) in enumerate(zip(source, target)):
        weight = made.weight + made.low_rank_source[s - 1] @ made.low_rank_target[t - 1]
        rows.append(x[:, row] @ weight.t() + made.bias)
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("look", [False, True])
@pytest.mark.parametrize("only", [False, True], ids=["several pairs", "one pair"])
def test_outputs_and_gradients_are_those_of_the_formula(look: bool, only: bool) -> None:
    source, target = (SOURCE[:1].expand(4), TARGET[:1].expand(4)) if only else (SOURCE, TARGET)
    made = make_map()
    x = torch.randn(6, 4, INPUTS, dtype=torch.float64, requires_grad=True)
    found, expected = run(made, x, source, target, look), by_the_formula(made, x, source, target)
    torch.testing.assert_close(found, expected)
    inputs = [x, *made.parameters()]
    gradients = [torch.autograd.grad(each.sin().sum(), inputs) for each in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_every_language_has_a_gradient_and_one_that_did_not_occur_has_zeros() -> None:
    made = make_map()
    run(made, torch.randn(2, 4, INPUTS, dtype=torch.float64), SOURCE, TARGET, False).sum().backward()
    assert [bool(each.any()) for each in made.low_rank_source.grad] == [True, True, False, True]
    assert [bool(each.any()) for each in made.low_rank_target.grad] == [True, True, True, False]


def test_at_the_start_it_is_the_linear_map_it_is_made_of() -> None:
    linear, x = nn.Linear(INPUTS, OUTPUTS), torch.randn(6, 4, INPUTS)
    made = LowRankLinear(linear, COUNT, RANK, CurrentLanguages(), torch.Generator())
    assert torch.equal(run(made, x, SOURCE, TARGET, False), linear(x))
    assert torch.equal(run(made, x, SOURCE[:1].expand(4), TARGET[:1].expand(4), True), linear(x))
    assert 0.002 < made.low_rank_source.std() < 0.05
    assert set(dict(linear.named_parameters())) < set(dict(made.named_parameters()))


def test_rows_without_languages_get_the_map_alone() -> None:
    made, none, x = make_map(), torch.zeros(4, dtype=torch.int64), torch.randn(6, 4, INPUTS, dtype=torch.float64)
    expected = x @ made.weight.t() + made.bias
    for look in (False, True):
        torch.testing.assert_close(run(made, x, none, none, look), expected)


def test_the_weight_of_an_only_pair_is_made_once_for_a_batch() -> None:
    made, x = make_map(), torch.randn(1, 4, INPUTS, dtype=torch.float64)
    languages = Languages.of_rows(SOURCE[:1].expand(4), TARGET[:1].expand(4), COUNT, torch.float64, look=True)
    assert languages.pair == (0, 2)
    with made.current.set(languages):
        made(x)
        folded = languages.folded[made]
        # Rows of the batch that are done with are gone.
        made(x[:, :2])
    assert languages.folded == {made: folded}
    assert Languages.of_rows(SOURCE, TARGET, COUNT, torch.float64, look=True).pair is None


def test_outside_a_batch_it_refuses() -> None:
    with pytest.raises(RuntimeError, match="outside its stack"):
        make_map()(torch.randn(1, 4, INPUTS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("look", [False, True])
def test_half_precision_is_close_and_stays_half(dtype: torch.dtype, look: bool) -> None:
    source, target = SOURCE[:1].expand(4), TARGET[:1].expand(4)
    made, x = make_map(), torch.randn(6, 4, INPUTS, dtype=torch.float64)
    expected = run(made, x, source, target, look)
    found = run(made.to(dtype), x.to(dtype), source, target, look)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().mean() < 0.02 * expected.abs().max()
