"""Linear maps of groups of rows against one map after the other, in both ways of computing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from taskmoe_plugin.moe import products as module
from taskmoe_plugin.moe.groups import Groups
from taskmoe_plugin.moe.products import grouped_linear, has_grouped_product

needs_grouped_mm = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this PyTorch has no grouped products")


def tensors(counts: list[int], inputs: int, outputs: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Rows, weights and biases of the groups."""
    generator = torch.Generator().manual_seed(sum(counts))
    shapes = (sum(counts), inputs), (len(counts), outputs, inputs), (len(counts), outputs)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def one_by_one(x: Tensor, weight: Tensor, bias: Tensor, counts: list[int], relu: bool) -> Tensor:
    y = torch.cat([F.linear(part, weight[group], bias[group]) for group, part in enumerate(x.split(counts))])
    return F.relu(y) if relu else y


def groups(counts: list[int], known: bool = False) -> Groups:
    found = Groups.of_counts(counts, torch.device("cpu"))
    return found if known else Groups(found.ends, found.owner)


def compare(counts: list[int], leaves: list[Tensor], known: bool, relu: bool = False, **tolerance: float) -> None:
    """Outputs and gradients equal those of one map after the other; gradients are there for empty groups, too."""
    ours = grouped_linear(*leaves, groups(counts, known), relu)
    theirs = one_by_one(*leaves, counts, relu)
    torch.testing.assert_close(ours, theirs, **tolerance)
    probe = torch.linspace(-1, 1, ours.numel()).view_as(ours).to(ours.dtype)
    gradients = torch.autograd.grad((ours * probe).sum(), leaves)
    expected = torch.autograd.grad((theirs * probe).sum(), leaves, materialize_grads=True)
    torch.testing.assert_close(gradients, expected, **tolerance)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)
def test_groups_of_any_size_are_mapped_by_their_own_weights(
    counts: list[int], inputs: int, outputs: int, known: bool, relu: bool
) -> None:
    compare(counts, tensors(counts, inputs, outputs), known, relu)


@needs_grouped_mm
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [0, 0, 2], [4], [1, 1, 0, 0]], ids=str)
def test_grouped_products_give_what_slices_give(counts: list[int], relu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_grouped_product", lambda *_: True)
    monkeypatch.setattr(module, "_product", lambda a, b, ends: F.grouped_mm(a, b, offs=ends))
    compare(counts, tensors(counts, 16, 24, torch.float32), known=False, relu=relu, rtol=1e-5, atol=1e-5)


@needs_grouped_mm
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_grouped_products_of_half_precision_have_its_type_and_are_close(dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_grouped_product", lambda *_: True)
    counts = [3, 0, 5, 1]
    leaves = tensors(counts, 16, 24, dtype)
    compare(counts, leaves, known=False, rtol=0.05, atol=0.1)
    assert grouped_linear(*leaves, groups(counts)).dtype == dtype


def test_autocast_decides_the_type_and_gradients_have_that_of_the_parameters() -> None:
    leaves = tensors([2, 3], 4, 5, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = grouped_linear(*leaves, groups([2, 3]))
    assert output.dtype == torch.bfloat16
    assert all(each.dtype == torch.float32 for each in torch.autograd.grad(output.float().sum(), leaves))


def test_gradients_pass_a_numerical_check() -> None:
    leaves = tensors([2, 0, 3], 3, 2)
    assert torch.autograd.gradcheck(lambda *each: grouped_linear(*each, groups([2, 0, 3])), leaves)


def test_rows_that_need_no_gradient_get_none() -> None:
    x, weight, bias = tensors([2, 3], 4, 5)
    grouped_linear(x.detach(), weight, bias, groups([2, 3])).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("device", "dtype", "widths", "generation", "expected"),
    [
        ("cuda", torch.bfloat16, (16, 24), 9, True),
        ("cuda", torch.float16, (16, 24), 10, True),
        ("cuda", torch.float32, (16, 24), 9, False),
        ("cuda", torch.bfloat16, (16, 24), 8, False),  # Ampere: PyTorch would copy the ends to the host
        ("cuda", torch.bfloat16, (16, 1365), 9, False),  # rows that are not aligned
        ("cuda", torch.bfloat16, (12, 24), 9, False),
        ("cpu", torch.bfloat16, (16, 24), 9, False),
    ],
)
@needs_grouped_mm
def test_grouped_products_are_used_where_there_is_a_kernel(
    device: str, dtype: torch.dtype, widths: tuple[int, int], generation: int, expected: bool, monkeypatch
) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(module, "_generation", lambda _: generation)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(3, widths[0], device=device, dtype=dtype)
        weight = torch.empty(2, widths[1], widths[0], device=device, dtype=dtype)
        assert has_grouped_product(x, weight) == expected
