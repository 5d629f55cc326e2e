"""Experts that stay in few bits compute what experts of the same weights do."""

from __future__ import annotations

import pytest
import torch

from taskmoe_plugin.moe import Experts, Groups
from taskmoe_plugin.moe.packed_experts import PackedExperts
from taskmoe_plugin.moe.packed_products import packed_product
from taskmoe_plugin.moe.quantize import quantize

EXPERTS, WIDTH, HIDDEN = 3, 32, 64
PARTS = ("fc1.weight", "fc2.weight")


def both(bits: int, group: int | None = None) -> tuple[Experts, PackedExperts]:
    """Experts with rounded weights, in single precision and in few bits."""
    torch.manual_seed(0)
    experts = Experts(EXPERTS, WIDTH, HIDDEN, torch.relu).requires_grad_(False)
    packed = {part: quantize(getattr(experts, part.replace(".", "_")), bits, group) for part in PARTS}
    for part, each in packed.items():
        getattr(experts, part.replace(".", "_")).copy_(each.dequantize())
    return experts, PackedExperts(experts, packed)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("group", [None, 32])
def test_outputs_are_those_of_the_rounded_weights(bits: int, group: int | None) -> None:
    experts, packed = both(bits, group)
    x, groups = torch.randn(7, WIDTH), Groups.of_counts([3, 0, 4], torch.device("cpu"))
    expected, found = experts(x, groups), packed(x, groups)
    # Products of PyTorch compute in bf16.
    tolerance = 1e-6 if bits < 4 else 0.02
    assert (found - expected).abs().max() < tolerance * expected.abs().max()
    assert len(packed) == EXPERTS


def test_folding_and_merging_are_exact() -> None:
    experts, packed = both(4)
    x = torch.randn(5, WIDTH)
    weights = torch.tensor([0.2, 0.8])
    torch.testing.assert_close(packed.fold([2, 0], weights)(x), experts.fold([2, 0], weights)(x))
    merging = torch.tensor([[0.5, 0.2, 0.3], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(packed.merge(merging[0])(x), experts.merge(merging[0])(x))
    groups = Groups.of_counts([2, 3], torch.device("cpu"))
    torch.testing.assert_close(packed(x, groups, merging), experts(x, groups, merging))


def test_a_shape_that_pytorch_does_not_take_has_no_product() -> None:
    for bits, shape in ((4, (10, 32)), (4, (16, 30)), (3, (16, 32)), (2, (16, 32))):
        assert packed_product(quantize(torch.randn(shape), bits)) is None
    assert packed_product(quantize(torch.randn(16, 32), 8, 16)) is None
    # What PyTorch does not refuse, and crashes at.
    for columns in (24, 40, 20, 33):
        assert packed_product(quantize(torch.randn(32, columns), 8)) is None


def test_dropout_is_that_of_the_experts() -> None:
    experts, packed = both(4)
    experts.dropout_module.p = 1.0
    x, groups = torch.randn(5, WIDTH), Groups.of_counts([2, 3, 0], torch.device("cpu"))
    merging = torch.eye(EXPERTS)
    for weights in (None, merging):
        torch.testing.assert_close(packed.train()(x, groups, weights), experts.fc2_bias[[0, 0, 1, 1, 1]])
        assert not torch.equal(packed.eval()(x, groups, weights), packed.train()(x, groups, weights))


def test_parameters_are_biases_alone_and_memory_is_that_of_the_codes() -> None:
    experts, packed = both(4)
    assert sorted(name for name, _ in packed.named_parameters()) == ["fc1_bias", "fc2_bias"]
    bytes_of = {name: each.nbytes for name, each in packed.named_buffers()}
    weights = experts.fc1_weight.nbytes + experts.fc2_weight.nbytes
    scales = 4 * EXPERTS * (HIDDEN + WIDTH)
    assert sum(bytes_of.values()) == weights // 8 + scales
