"""Weights in few bits against the formulas of the papers."""

from __future__ import annotations

import pytest
import torch

from taskmoe_plugin.moe.quantize import BITS, Packed, pack, quantize, round_weights, unpack


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("columns", [16, 13])
def test_codes_are_packed_without_loss(bits: int, columns: int) -> None:
    codes = torch.randint(2**bits, (3, 5, columns), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype is torch.uint8
    assert packed.size(-1) == {8: columns, 4: -(-columns // 2), 3: 3 * -(-columns // 8), 2: -(-columns // 4)}[bits]
    assert torch.equal(unpack(packed, bits)[..., :columns], codes)


def test_of_two_codes_in_a_byte_the_even_one_is_low() -> None:
    assert pack(torch.tensor([1, 2, 3, 4], dtype=torch.uint8), 4).tolist() == [0x21, 0x43]
    assert pack(torch.tensor([1, 2, 3, 0], dtype=torch.uint8), 2).tolist() == [0b00_11_10_01]


def by_formula(row: torch.Tensor, bits: int) -> torch.Tensor:
    """Elephants, section 3.4; with 2 bits MoQE's step and levels around zero."""
    if bits == 2:
        step = 2 * row.abs().max() / 3
        levels = step * torch.tensor([-1.5, -0.5, 0.5, 1.5])
        return levels[(row.unsqueeze(1) - levels).abs().argmin(dim=1)]
    step = row.abs().max() / 2 ** (bits - 1)
    return (row / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [None, 8])
def test_each_weight_is_the_nearest_level(bits: int, group: int | None) -> None:
    weight = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(bits))
    packed = quantize(weight, bits, group)
    assert packed.shape == weight.shape
    found = packed.dequantize()
    rows = weight.reshape(-1, group or 24)
    expected = torch.stack([by_formula(row, bits) for row in rows]).view_as(weight)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(packed[1].dequantize(), expected[1])
    # Off by half a step at most, but for what is clipped: the largest of a row by one step.
    steps = packed.scale.repeat_interleave(group or 24, dim=-1)
    clipped = (weight / steps > 2 ** (bits - 1) - 0.5) if bits > 2 else torch.zeros_like(weight, dtype=torch.bool)
    assert ((weight - found).abs() <= steps * (0.5 + clipped * 0.5) * 1.0001).all()
    assert clipped.any() == (bits > 2)


def test_rows_of_zeros_stay_zero_and_2_bits_have_no_level_for_them() -> None:
    assert quantize(torch.zeros(2, 8), 4).dequantize().eq(0).all()
    assert quantize(torch.zeros(2, 8), 2).dequantize().abs().eq(0.5).all()


@pytest.mark.parametrize("bits", BITS)
def test_rounding_in_training_is_the_rounding_of_the_file_and_lets_the_gradient_through(bits: int) -> None:
    weight = torch.randn(2, 4, 8).requires_grad_()
    rounded = round_weights(weight, bits)
    torch.testing.assert_close(rounded, quantize(weight.detach(), bits).dequantize(), rtol=0, atol=1e-6)
    factor = torch.randn(2, 4, 8)
    (rounded * factor).sum().backward()
    assert torch.equal(weight.grad, factor)


def test_bytes_are_those_of_codes_and_scales() -> None:
    packed = quantize(torch.randn(2, 4, 32), 4, 16)
    assert isinstance(packed, Packed)
    assert packed.nbytes == 2 * 4 * (16 + 2 * 4)


def test_scales_of_groups_that_do_not_divide_a_row_are_refused() -> None:
    packed = quantize(torch.randn(2, 8), 8, 4)
    packed.check()
    with pytest.raises(ValueError, match="scales"):
        Packed(packed.codes, torch.ones(2, 3), 8, 8).check()
