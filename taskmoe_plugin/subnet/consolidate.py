"""Putting a checkpoint whose experts are in several files into one file, a few tensors at a time."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskmoe_plugin.parallel.shards import KEY, ExpertShards, exact_offsets, load_mapped
from taskmoe_plugin.subnet import pages
from taskmoe_plugin.subnet.errors import SubnetError

AT_ONCE = 64 << 20  # bytes of tensors between two looks at the new file


def consolidate(path: Path, output: Path, optimizer: bool, force: bool) -> None:
    """Write a checkpoint as one process would have saved it.

    No more than ``AT_ONCE`` bytes and one tensor are in memory at a time. The new file has a temporary name until it is
    complete.

    Args:
        path: a checkpoint that ``--moe-expert-parallel`` saved.
        output: the file to write.
        optimizer: whether it keeps the optimizer state.
        force: whether the file may be replaced.

    Raises:
        SubnetError: a file is missing or broken, has all experts already, or cannot be written.
    """
    if output.exists() and not force:
        raise SubnetError(f"--output {output}: exists; give --force to replace it")
    if not hasattr(torch.serialization, "skip_data"):
        raise SubnetError(f"torch {torch.__version__}: consolidating needs PyTorch 2.6 or later")
    temporary = output.with_name(f".{output.name}.tmp")
    state = _assemble(path, optimizer)
    try:
        with torch.serialization.skip_data():
            torch.save(state, temporary)
        _fill(temporary, state)
        temporary.replace(output)
    except OSError as error:
        raise SubnetError(f"--output {output}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _assemble(path: Path, optimizer: bool) -> dict[str, Any]:
    """The checkpoint with all experts in it, its tensors still on disk."""
    if not path.is_file():
        raise SubnetError(f"{path}: no such file; give a checkpoint that --moe-expert-parallel saved")
    try:
        state = load_mapped(path)
    except ValueError as error:
        raise SubnetError(f"{path}: {error}; give another checkpoint") from error
    manifest = state.get("model", {}).pop(KEY, None) if isinstance(state, dict) else None
    if manifest is None:
        raise SubnetError(f"{path}: has no experts in other files; it needs no consolidating")
    shards = ExpertShards(manifest, [path.absolute().parent])
    state["model"].update(shards)
    if not optimizer:
        state.pop("last_optimizer_state", None)
    if state.get("last_optimizer_state"):
        states = {shards.number(name): shards.optimizer_state(name) for name in shards}
        state["last_optimizer_state"]["state"].update({number: each for number, each in states.items() if each})
    return state  # type: ignore[no-any-return]


def _fill(path: Path, state: dict[str, Any]) -> None:
    """Copy the tensors of a checkpoint into a file that has room for them."""
    places = list(_tensors(state))
    while places:
        # Mapped anew for each lot: what has been written counts as the process's memory as long as it is mapped.
        with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED), exact_offsets():
            written = dict(_tensors(torch.load(path, map_location="cpu", mmap=True, weights_only=True)))
        size = 0
        while places and size < AT_ONCE:
            place, tensor = places.pop(0)
            if tensor.numel():
                written[place].copy_(pages.read(tensor))
            size += tensor.numel() * tensor.element_size()


def _tensors(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _tensors(each, (*place, key))
    elif isinstance(value, (list, tuple)):
        for number, each in enumerate(value):
            yield from _tensors(each, (*place, number))
