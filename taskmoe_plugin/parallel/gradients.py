"""Gradients of experts that are spread over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from fairseq.distributed import LegacyDistributedDataParallel
from fairseq.distributed import utils as distributed_utils
from torch import Tensor


def fit_buffer(wrapper: LegacyDistributedDataParallel) -> None:
    """Have fairseq's legacy_ddp exchange the gradients that processes share, and nothing else.

    It exchanges a buffer that has room for all gradients, although it leaves out those of spread experts.
    """
    shared = sum(each.numel() for each in wrapper.module.parameters() if not hasattr(each, "expert"))
    wrapper.buffer_size = min(wrapper.buffer_size, shared)


def clip_by_whole_norm(optimizer: Any, group: Any) -> None:
    """Have a fairseq optimizer clip by, and report, the norm of all gradients, every process's experts included.

    fairseq's norm leaves experts out. What it offers for parts of a gradient that lie elsewhere is a function of the
    norm, which its trainer gives for ``fully_sharded`` alone; this gives it for spread experts.
    """
    clip: Callable[..., Tensor] = optimizer.clip_grad_norm

    def clip_grad_norm(max_norm: float, aggregate_norm_fn: None = None) -> Tensor:
        return clip(max_norm, aggregate_norm_fn=lambda shared: _with_experts(shared, optimizer.params, group))

    optimizer.clip_grad_norm = clip_grad_norm


@torch.no_grad()
def _with_experts(shared: Tensor, parameters: Iterable[Tensor], group: Any) -> Tensor:
    gradients = [each.grad for each in parameters if hasattr(each, "expert") and each.grad is not None]
    squares = torch.stack([torch.linalg.vector_norm(each, dtype=torch.float32) for each in gradients]).square().sum()
    distributed_utils.all_reduce(squares, group=group)
    return (shared.square() + squares).sqrt()


def fill_missing_gradients(optimizer: Any) -> None:
    """Give parameters without a gradient, which an unused expert's are, one of zeros.

    fairseq's wrappers for several processes and for half precision do so. With momentum or weight decay a zero gradient
    is not the same as none, and one process in full precision must train as all others do.
    """
    for parameter in optimizer.params:
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
