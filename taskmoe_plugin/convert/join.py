"""``join``: two trained models of one shape become one that has the experts of both.

Aggregation of experts (Z-code M3: Scalable and Efficient MoE Training for Multitask Multilingual Models, Kim et al.
2021): experts and their rows of the gates side by side, the mean of everything else, and training goes on from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from taskmoe_plugin.convert.conversion import Converted
from taskmoe_plugin.convert.source import Source
from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.models.config import STACKS
from taskmoe_plugin.models.continuing import DENSE, OF_BOTH, OF_EXPERTS
from taskmoe_plugin.subnet.scratch import Scratch
from taskmoe_plugin.tasks.remembered_flags import COMPARED, MEMORY

BLOCK = 1 << 24  # numbers whose mean is made at once
# Tensors that have experts, and along which dimension.
EXPERTS = re.compile(r"\.moe\.(experts|router)\."), re.compile(r"\.tasks\.gates\.(weight|head_start)$")
# What two models must have in common that the shapes of their tensors do not tell.
SAME_FLAGS = (
    "taskmoe_langs", "taskmoe_lang_pairs", "taskmoe_groups", *OF_BOTH, *OF_EXPERTS, "moe_dense_training",
    "moe_expert_bits",
    *(f"{stack}_{part}" for stack in STACKS for part in (*DENSE, "moe_routing", "normalize_before")),
)  # fmt: skip


def join(source: Source, scratch: Scratch, other: Path) -> Converted:
    """Join a model with another.

    Raises:
        TaskMoEError: one of them has no experts that could be joined, or they differ in shape.
    """
    sources = source, Source.open(other)
    scratch.take(sources[1].state)
    for each in sources:
        _check(each)
    _check_same(*sources)
    tied = source.tensors.tied
    cosine = _Cosine()
    model: dict[str, Tensor] = {}
    for name in source.tensors.names():
        if name not in tied:
            dimension = _dimension(name)
            if dimension is None:
                model[name] = scratch.cat(_means(sources, name, cosine), source.tensors.shape(name)[0])
            elif dimension == 0:
                count = source.tensors.shape(name)[0]
                experts = (each.tensors.expert(name, expert) for each in sources for expert in range(count))
                model[name] = scratch.stack(experts, 2 * count)
            else:
                model[name] = torch.cat([each.tensors.tensor(name) for each in sources], dim=dimension)
    model |= {name: model[tied[name]] for name in source.tensors.names() if name in tied}
    cfg = source.cfg
    count = cfg["model"].moe_expert_count
    cfg["model"].moe_expert_count = 2 * count
    done = f"joined {count} experts of a layer with {count} of {other}; the cosine of the other weights is {cosine}"
    return Converted(cfg, model, done)


def _dimension(name: str) -> int | None:
    return next((dimension for dimension, kind in enumerate(EXPERTS) if kind.search(name)), None)


def _means(sources: Sequence[Source], name: str, cosine: _Cosine) -> Iterator[Tensor]:
    """The mean of a tensor of two models, some rows at a time."""
    shape = sources[0].tensors.shape(name)
    step = max(1, BLOCK // max(1, shape[1:].numel()))
    for start in range(0, shape[0], step):
        rows = torch.arange(start, min(start + step, shape[0]))
        one, other = (source.tensors.tensor(name, rows) for source in sources)
        cosine.add(one, other)
        yield _mean(one, other)


def _mean(one: Tensor, other: Tensor) -> Tensor:
    return ((one.double() + other.double()) / 2).to(one.dtype) if one.is_floating_point() else one


class _Cosine:
    """The cosine of two models' weights, over all tensors together: far from 1 where they have no common start."""

    def __init__(self) -> None:
        self.product = self.one = self.other = 0.0

    def add(self, one: Tensor, other: Tensor) -> None:
        one, other = one.double().flatten(), other.double().flatten()
        self.product += float(one @ other)
        self.one += float(one @ one)
        self.other += float(other @ other)

    def __str__(self) -> str:
        return f"{self.product / (self.one * self.other) ** 0.5:.3f}"


def _check(source: Source) -> None:
    source.require(dense=False, remedy="upcycle it first")
    args = source.state["cfg"]["model"]
    if getattr(args, "taskmoe_subnet", None):
        raise TaskMoEError(f"{source.path}: is pruned; give the checkpoint that it was made from")
    if args.moe_task_gate == "static" or args.moe_combine != "outputs":
        raise TaskMoEError(
            f"{source.path}: its gates choose no experts, but have all that they were given; join models that were "
            "trained without --moe-task-gate static and --moe-combine weights"
        )


def _check_same(one: Source, other: Source) -> None:
    args, others = (each.state["cfg"]["model"] for each in (one, other))
    for name in SAME_FLAGS:
        values = getattr(args, name, None), getattr(others, name, None)
        if values[0] != values[1]:
            raise _different(one, other, f"{name}, which are {values[0]} and {values[1]}")
    trained = [getattr(each.state["cfg"]["task"], MEMORY, {}) for each in (one, other)]
    for name in COMPARED:
        values = trained[0].get(name), trained[1].get(name)
        if values[0] != values[1]:
            raise _different(one, other, f"{name}, which are {values[0]} and {values[1]}")
    if trained[0].get("dictionaries") != trained[1].get("dictionaries"):
        raise _different(one, other, "their dictionaries")
    shapes = [{name: each.tensors.shape(name) for name in each.tensors.names()} for each in (one, other)]
    for name in {**shapes[0], **shapes[1]}:
        if shapes[0].get(name) != shapes[1].get(name):
            raise _different(one, other, f"the shape of {name}")


def _different(one: Source, other: Source, what: str) -> TaskMoEError:
    return TaskMoEError(f"{other.path}: differs from {one.path} in {what}; join two trainings of one model")
