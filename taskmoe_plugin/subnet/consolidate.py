"""Putting a checkpoint whose experts are in several files into one file, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.files.loading import LoadError, load
from taskmoe_plugin.parallel.manifest import KEY
from taskmoe_plugin.parallel.shards import ExpertShards
from taskmoe_plugin.subnet import pages
from taskmoe_plugin.subnet.scratch import Scratch, check_free, save_mapped


def consolidate(path: Path, output: Path, optimizer: bool, force: bool) -> None:
    """Write a checkpoint as one process would have saved it.

    Of its tensors no more than the experts of one process in one layer are in memory at a time: those of several
    processes are put together in temporary files beside the new one. That has a temporary name until it is complete.

    Args:
        path: a checkpoint that ``--moe-expert-parallel`` saved.
        output: the file to write.
        optimizer: whether it keeps the optimizer state.
        force: whether the file may be replaced.

    Raises:
        TaskMoEError: a file is missing or broken, or has all experts already, or the new one cannot be written.
    """
    check_free(output, force)
    save_mapped(lambda scratch: _assemble(path, output, optimizer, scratch), output, force)


def _assemble(path: Path, output: Path, optimizer: bool, scratch: Scratch) -> dict[str, Any]:
    """The checkpoint with all experts in it, its tensors still on disk."""
    try:
        state = load(path)
    except LoadError as error:
        raise TaskMoEError(error.of(path)) from error
    scratch.take(state)
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(model, dict):
        raise TaskMoEError(f"{path}: no checkpoint of fairseq; give one that --moe-expert-parallel saved")
    manifest = model.pop(KEY, None)
    if manifest is None:
        raise TaskMoEError(
            f"{path}: has no experts in other files, so there is nothing to consolidate; use it as it is"
        )
    shards = ExpertShards(manifest, [path.absolute().parent], str(path))
    shards.check_complete()
    if output.resolve() in [place.resolve() for place in shards.files]:
        raise TaskMoEError(f"--output {output}: holds experts of {path}; give another name")
    state["model"].update({name: _weight(shards, name, scratch) for name in shards})
    last = state.get("last_optimizer_state")
    if not optimizer:
        state["last_optimizer_state"] = None
    elif last is not None:
        states = {shards.number(name): _optimizer_state(shards, name, scratch) for name in shards}
        last["state"].update({number: each for number, each in states.items() if each})
    return state  # type: ignore[no-any-return]


def _weight(shards: ExpertShards, name: str, scratch: Scratch) -> Tensor:
    """All experts of a layer, in a mapped file."""
    return _stack([shards.weight_part(name, process) for process in range(shards.processes)], scratch)


def _optimizer_state(shards: ExpertShards, name: str, scratch: Scratch) -> dict[str, Any]:
    """The optimizer state of all experts of a layer, its large tensors in mapped files."""
    parts = [shards.optimizer_part(name, process) for process in range(shards.processes)]
    large = {key for key, value in parts[0].items() if isinstance(value, Tensor) and value.dim() > 1}
    moments = {key: _stack([part[key] for part in parts], scratch) for key in large if _is_moment(shards, name, key)}
    if moments.keys() == parts[0].keys():
        return moments
    return {**shards.optimizer_state(name, range(shards.experts), without=moments), **moments}


def _is_moment(shards: ExpertShards, name: str, key: str) -> bool:
    return shards.optimizer_part(name, 0)[key].shape == shards.weight_part(name, 0).shape  # type: ignore[no-any-return]


def _stack(parts: list[Tensor], scratch: Scratch) -> Tensor:
    """The parts of the processes one after the other, in a mapped file; read and written without staying in memory."""
    return scratch.cat(_released(parts), sum(part.size(0) for part in parts))


def _released(parts: list[Tensor]) -> Iterator[Tensor]:
    for part in parts:
        yield part
        pages.release([part])
