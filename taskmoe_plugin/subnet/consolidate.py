"""Putting a checkpoint whose experts are in several files into one file, tensor by tensor."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.files.loading import LoadError, load
from taskmoe_plugin.files.writing import cause_of, new_file
from taskmoe_plugin.parallel.shards import KEY, ExpertShards
from taskmoe_plugin.subnet import pages

AT_ONCE = 16 << 20  # bytes


def consolidate(path: Path, output: Path, optimizer: bool, force: bool) -> None:
    """Write a checkpoint as one process would have saved it.

    Of its tensors no more than the experts of one process in one layer and ``AT_ONCE`` bytes are in memory at a time:
    those of several processes are put together in temporary files beside the new one. That has a temporary name until
    it is complete.

    Args:
        path: a checkpoint that ``--moe-expert-parallel`` saved.
        output: the file to write.
        optimizer: whether it keeps the optimizer state.
        force: whether the file may be replaced.

    Raises:
        TaskMoEError: a file is missing or broken, or has all experts already, or the new one cannot be written.
    """
    # A link that leads nowhere exists as well.
    if os.path.lexists(output) and not force:
        raise TaskMoEError(f"--output {output}: exists; give --force to replace it")
    if output.is_dir():
        raise TaskMoEError(f"--output {output}: is a directory; give the name of a file")
    with new_file(output, f"--output {output}") as temporary:
        try:
            with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
                state = _assemble(path, optimizer, Path(scratch))
                with _Releasing(temporary, list(_tensors(state))) as file:
                    torch.save(state, file)
        except RuntimeError as error:
            raise cause_of(error) from None


def _assemble(path: Path, optimizer: bool, scratch: Path) -> dict[str, Any]:
    """The checkpoint with all experts in it, its tensors still on disk."""
    try:
        state = load(path)
    except LoadError as error:
        raise TaskMoEError(f"{path}: {error}; {error.remedy}") from error
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(model, dict):
        raise TaskMoEError(f"{path}: no checkpoint of fairseq; give one that --moe-expert-parallel saved")
    manifest = model.pop(KEY, None)
    if manifest is None:
        raise TaskMoEError(
            f"{path}: has no experts in other files, so there is nothing to consolidate; use it as it is"
        )
    shards = ExpertShards(manifest, [path.absolute().parent])
    shards.check_complete()
    state["model"].update({name: _weight(shards, name, scratch) for name in shards})
    last = state.get("last_optimizer_state")
    if not optimizer:
        state["last_optimizer_state"] = None
    elif last is not None:
        states = {shards.number(name): _optimizer_state(shards, name, scratch) for name in shards}
        last["state"].update({number: each for number, each in states.items() if each})
    return state  # type: ignore[no-any-return]


def _weight(shards: ExpertShards, name: str, scratch: Path) -> Tensor:
    """All experts of a layer, in a mapped file."""
    return _stack([shards.weight_part(name, process) for process in range(len(shards.files))], scratch)


def _optimizer_state(shards: ExpertShards, name: str, scratch: Path) -> dict[str, Any]:
    """The optimizer state of all experts of a layer, its large tensors in mapped files."""
    parts = [shards.optimizer_part(name, process) for process in range(len(shards.files))]
    large = {key for key, value in parts[0].items() if isinstance(value, Tensor) and value.dim() > 1}
    moments = {key: _stack([part[key] for part in parts], scratch) for key in large if _is_moment(shards, name, key)}
    if moments.keys() == parts[0].keys():
        return moments
    return {**shards.optimizer_state(name, range(shards.experts), without=moments), **moments}


def _is_moment(shards: ExpertShards, name: str, key: str) -> bool:
    return shards.optimizer_part(name, 0)[key].shape == shards.weight_part(name, 0).shape  # type: ignore[no-any-return]


def _stack(parts: list[Tensor], scratch: Path) -> Tensor:
    """The parts of the processes one after the other, in a mapped file; read and written without staying in memory."""
    count, *rest = parts[0].shape
    file = scratch / str(len(list(scratch.iterdir())))
    shape = torch.Size((count * len(parts), *rest))
    whole = torch.from_file(str(file), shared=True, size=shape.numel(), dtype=parts[0].dtype).view(shape)
    for own, part in zip(torch.split(whole, count), parts):
        own.copy_(part)
        pages.release([part, own])
    return whole


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


class _Releasing(io.FileIO):
    """A new file that from time to time gives back the pages of the mapped tensors that are being written to it.

    Otherwise all that has been read of them would count as this process's memory.
    """

    def __init__(self, path: Path, tensors: list[Tensor]) -> None:
        super().__init__(path, "w")
        self._tensors = tensors
        self._unreleased = 0

    def write(self, data: Any) -> int:
        """Write all of some bytes."""
        left = memoryview(data)
        while left:
            left = left[super().write(left) :]
        self._unreleased += len(data)
        if self._unreleased > AT_ONCE:
            pages.release(self._tensors)
            self._unreleased = 0
        return len(data)
