"""Gradients of experts that are spread over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from fairseq.distributed import LegacyDistributedDataParallel
from torch import Tensor, nn

from taskmoe_plugin.parallel.group import ExpertGroup


def mark_as_spread(experts: nn.Module, processes: int) -> None:
    """Have fairseq leave these experts' gradients alone, and make them what it makes of all others."""
    for parameter in experts.parameters():
        parameter.expert = True  # type: ignore[attr-defined]
        # It averages over processes. An expert's gradient is the sum already, for it saw the tokens of all of them.
        parameter.register_hook(lambda gradient: gradient / processes)  # type: ignore[no-untyped-call]


def ignore_in_ddp(model: nn.Module) -> None:
    """Have PyTorch's DDP leave the spread experts of a model alone, too."""
    spread = {name for name, parameter in model.named_parameters() if hasattr(parameter, "expert")}
    model._ddp_params_and_buffers_to_ignore = spread  # type: ignore[assignment]


def fit_buffer(wrapper: LegacyDistributedDataParallel) -> None:
    """Have fairseq's legacy_ddp exchange the gradients that processes share, and nothing else.

    It exchanges a buffer that has room for all gradients, although it leaves out those of spread experts.
    """
    shared = sum(each.numel() for each in wrapper.module.parameters() if not hasattr(each, "expert"))
    wrapper.buffer_size = min(wrapper.buffer_size, shared)


def clip_by_whole_norm(optimizer: Any, group: ExpertGroup) -> None:
    """Have a fairseq optimizer clip by, and report, the norm of all gradients, every process's experts included.

    fairseq's norm leaves experts out. What it offers for parts of a gradient that lie elsewhere is a function of the
    norm, which its trainer gives for ``fully_sharded`` alone; this gives it for spread experts.
    """
    clip: Callable[..., Tensor] = optimizer.clip_grad_norm

    def clip_grad_norm(max_norm: float, aggregate_norm_fn: None = None) -> Tensor:
        return clip(max_norm, aggregate_norm_fn=lambda shared: _with_experts(shared, optimizer.params, group))

    optimizer.clip_grad_norm = clip_grad_norm


@torch.no_grad()
def _with_experts(shared: Tensor, parameters: Iterable[Tensor], group: ExpertGroup) -> Tensor:
    # A stack of models without experts has none to add, but all processes add together.
    squares = torch.zeros((), device=shared.device)
    for each in parameters:
        if hasattr(each, "expert") and each.grad is not None:
            squares += torch.linalg.vector_norm(each.grad, dtype=torch.float32).square()
    return (shared.square() + group.sum(squares)).sqrt()
