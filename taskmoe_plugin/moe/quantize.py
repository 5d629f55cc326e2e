"""Weights in few bits: symmetric, one scale for each row or for each group of a row's weights.

Who Says Elephants Can't Run (Kim et al. 2022, section 3.4) for 8 and 4 bits, MoQE (Kim et al. 2023) for 3 and 2.
A weight is scale · (code - zero), with codes from 0 to 2^bits - 1. In the first, zero = 2^(bits - 1) and scale =
max |w| / 2^(bits - 1), so that the largest positive weights are clipped by one step. With 2 bits that would leave three
levels for what is symmetric: zero = 1.5 and scale = max |w| / 1.5 give the levels ±0.5 and ±1.5 (MoQE's step,
2 max |w| / (2^bits - 1)), and nothing is clipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BITS = (8, 4, 3, 2)


def zero_of(bits: int) -> float:
    """The code of weight 0, which with 2 bits is between two codes."""
    return 1.5 if bits == 2 else float(2 ** (bits - 1))


@dataclass(frozen=True)
class Packed:
    """A quantised tensor (…, C) of weights.

    Attributes:
        codes: (…, bytes) uint8, the codes of a row one after the other, low bits first: of two 4-bit codes in a byte
            the even one has the low half.
        scale: (…, G) fp32, of each of G groups of C/G neighbouring weights.
        bits: of a code.
        columns: C.
    """

    codes: Tensor
    scale: Tensor
    bits: int
    columns: int

    def __getitem__(self, index: int) -> Packed:
        """One of the tensors along the first dimension."""
        return Packed(self.codes[index], self.scale[index], self.bits, self.columns)

    def check(self) -> None:
        """Raise ``ValueError`` if the parts do not belong together."""
        if self.bits not in BITS:
            raise ValueError(f"{self.bits} bits")
        count, size = _word(self.bits)
        expected = *self.scale.shape[:-1], -(-self.columns // count) * size
        groups = self.scale.size(-1)
        if self.codes.dtype is not torch.uint8 or self.codes.shape != expected or not groups or self.columns % groups:
            raise ValueError(f"codes {tuple(self.codes.shape)}, scales {tuple(self.scale.shape)}")

    def dequantize(self) -> Tensor:
        """(…, C) fp32."""
        codes = unpack(self.codes, self.bits)[..., : self.columns]
        return _scaled(codes.float() - zero_of(self.bits), self.scale)

    @property
    def shape(self) -> torch.Size:
        """That of the tensor."""
        return torch.Size((*self.codes.shape[:-1], self.columns))

    @property
    def nbytes(self) -> int:
        """The bytes of codes and scales."""
        return self.codes.nbytes + self.scale.nbytes


def quantize(weight: Tensor, bits: int, group: int | None = None) -> Packed:
    """Quantise a tensor (…, C).

    Args:
        weight: floating point.
        bits: one of ``BITS``.
        group: how many neighbouring weights of a row share a scale, a divisor of C; None: all.
    """
    codes, scale = _codes(weight, bits, group)
    return Packed(pack(codes.to(torch.uint8), bits), scale, bits, weight.size(-1))


def round_weights(weight: Tensor, bits: int) -> Tensor:
    """The tensor that ``quantize(…).dequantize()`` gives, in its own type; its gradient is that of its copy.

    This is how quantised weights are trained: the gradient goes straight through the rounding (Bengio et al. 2013).
    """
    with torch.no_grad():
        codes, scale = _codes(weight, bits, None)
        rounded = _scaled(codes - zero_of(bits), scale).to(weight.dtype)
    # What is added is exactly zero.
    return rounded + (weight - weight.detach())


def _codes(weight: Tensor, bits: int, group: int | None) -> tuple[Tensor, Tensor]:
    """Codes (…, C) and scales (…, G), fp32."""
    grouped = _split(weight.float(), group or weight.size(-1))
    scale = grouped.abs().amax(dim=-1) / zero_of(bits)
    # A row of zeros has any scale.
    scale = torch.where(scale != 0, scale, torch.ones_like(scale))
    codes = (grouped / scale.unsqueeze(-1) + zero_of(bits)).round().clamp(0, 2**bits - 1)
    return codes.flatten(-2), scale


def _scaled(levels: Tensor, scale: Tensor) -> Tensor:
    return (_split(levels, levels.size(-1) // scale.size(-1)) * scale.unsqueeze(-1)).flatten(-2)


def _split(row: Tensor, size: int) -> Tensor:
    """(…, C) as (…, C/size, size)."""
    return row.reshape(*row.shape[:-1], -1, size)


def pack(codes: Tensor, bits: int) -> Tensor:
    """(…, bytes) uint8 of codes (…, C) uint8; the last byte of a row may have bits that nothing uses."""
    count, size = _word(bits)
    extra = -codes.size(-1) % count
    words = _split(F.pad(codes, (0, extra)), count).int()
    whole = (words << _shifts(count, bits, codes)).sum(dim=-1, dtype=torch.int32, keepdim=True)
    return (whole >> _shifts(size, 8, codes) & 255).to(torch.uint8).flatten(-2)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """(…, C or some more) uint8, the codes that ``pack`` has packed."""
    count, size = _word(bits)
    words = _split(packed, size).int()
    whole = (words << _shifts(size, 8, packed)).sum(dim=-1, dtype=torch.int32, keepdim=True)
    return (whole >> _shifts(count, bits, packed) & (1 << bits) - 1).to(torch.uint8).flatten(-2)


def _word(bits: int) -> tuple[int, int]:
    """How many codes fill how many bytes."""
    common = math.lcm(bits, 8)
    return common // bits, common // 8


def _shifts(count: int, by: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.int32, device=like.device) * by
