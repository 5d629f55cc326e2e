"""One product for all experts gives what a product for each of them does, and is what a recent GPU computes with."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from taskmoe_plugin.moe import Groups, grouped_linear, products
from tests.gpu.layers import LayerOnDevice

pytestmark = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this PyTorch has no grouped products")

# Groups that are empty, of one row, and of no multiple of anything.
COUNTS = {"uneven": (3, 0, 129, 1, 0, 64, 17, 42), "one": (0, 0, 0, 0, 0, 256, 0, 0), "many": (5, 0) * 64}
# Relative to the largest value: bf16 has 8 bits, and in fp16 the grouped products are made in bf16.
ROUNDING = 2.0**-6


@dataclass(frozen=True)
class Result:
    """An output and its gradients."""

    tensors: tuple[Tensor, ...]

    def check_close(self, other: Result) -> None:
        for ours, theirs in zip(self.tensors, other.tensors, strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.isfinite().all()
            largest = theirs.float().abs().max()
            assert (ours.float() - theirs.float()).abs().max() <= ROUNDING * largest


def use(grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "has_grouped_product", lambda *_: grouped)


def linear(counts: tuple[int, ...], dtype: torch.dtype, device: torch.device, widths: tuple[int, int]) -> Result:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()

    inner, outer = widths
    x, weight, bias = random(sum(counts), inner), random(len(counts), outer, inner), random(len(counts), outer)
    y = grouped_linear(x, weight, bias, Groups.of_counts(counts, device))
    y.backward(torch.randn(y.shape, generator=generator).to(device, dtype))
    return Result((y.detach(), x.grad, weight.grad, bias.grad))  # type: ignore[arg-type]


@pytest.mark.parametrize("widths", [(64, 256), (256, 64), (8, 24)])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_grouped_products_equal_the_loop(
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    counts: tuple[int, ...],
    widths: tuple[int, int],
) -> None:
    found = []
    for grouped in (True, False):
        use(grouped, monkeypatch)
        found.append(linear(counts, dtype, device, widths))
    found[0].check_close(found[1])
    empty = torch.tensor(counts, device=device).eq(0)
    for gradient in found[0].tensors[2:]:
        assert not gradient[empty].any()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["task", "sentence", "token"])
def test_a_layer_of_grouped_products_equals_one_of_a_loop(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype, padded: bool
) -> None:
    found = []
    for grouped in (True, False):
        use(grouped, monkeypatch)
        layer = LayerOnDevice(kind, dtype, padded, device)
        output = layer.step()
        gradients = [parameter.grad for parameter in layer.moe.experts.parameters()]
        found.append(Result((output, layer.x.grad, *gradients)))  # type: ignore[arg-type]
    found[0].check_close(found[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_recent_gpu_has_grouped_products(device: torch.device, dtype: torch.dtype) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < products.HOPPER:
        pytest.skip("this GPU has none")
    x, weight = torch.empty(4, 64, device=device, dtype=dtype), torch.empty(2, 128, 64, device=device, dtype=dtype)
    assert products.has_grouped_product(x, weight)
    assert not products.has_grouped_product(x.float(), weight.float())
    assert not products.has_grouped_product(x, weight[:, :127])
