"""Writing checkpoints that are larger than memory: their tensors are made in temporary files beside them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.files.writing import cause_of, new_file, scratch_directory
from taskmoe_plugin.subnet import pages

AT_ONCE = 16 << 20  # bytes
Advance = Callable[[int], object]


def ignore(count: int) -> None:
    """An ``advance`` that tells nobody."""


def check_free(output: Path, force: bool) -> None:
    """Refuse to write a file where something is.

    Raises:
        TaskMoEError: it is a directory, or exists and may not be replaced.
    """
    # A link that leads nowhere exists as well.
    if os.path.lexists(output) and not force:
        raise TaskMoEError(f"--output {output}: exists; give --force to replace it")
    if output.is_dir():
        raise TaskMoEError(f"--output {output}: is a directory; give the name of a file")


class Scratch:
    """Makes tensors in mapped files, so that they need not be in memory.

    Args:
        directory: where the files are; they are not removed.
        advance: told of the bytes that have been made.

    Attributes:
        mapped: the tensors that are in files, whose pages can be given back while they are written. Ordinary memory
            given back is lost.
    """

    def __init__(self, directory: Path, advance: Advance = ignore) -> None:
        self.mapped: list[Tensor] = []
        self._directory = directory
        self._advance = advance

    def take(self, loaded: Any) -> None:
        """Take note of the tensors of a mapped checkpoint, all of which are in its file."""
        self.mapped.extend(_tensors(loaded))

    def cat(self, parts: Iterable[Tensor], length: int) -> Tensor:
        """``torch.cat(parts)``, of which one part is in memory at a time.

        Args:
            parts: tensors of one type, of one shape but for the first dimension.
            length: the first dimension of the result.
        """
        whole, start = None, 0
        for part in parts:
            if whole is None:
                whole = self._empty(torch.Size((length, *part.shape[1:])), part.dtype)
            own = whole[start : start + part.size(0)]
            own.copy_(part)
            pages.release([own])
            start += part.size(0)
            self._advance(own.nbytes)
        assert whole is not None
        assert start == length
        return whole

    def stack(self, parts: Iterable[Tensor], count: int) -> Tensor:
        """``torch.stack(parts)``, of which one of ``count`` parts is in memory at a time."""
        return self.cat((part.unsqueeze(0) for part in parts), count)

    def _empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        path = self._directory / str(len(self.mapped))
        if size := shape.numel() * dtype.itemsize:
            with path.open("xb") as file:
                # Without room for all of it, writing to a mapped page would end this process.
                os.posix_fallocate(file.fileno(), 0, size)
        tensor = torch.from_file(str(path), shared=True, size=shape.numel(), dtype=dtype).view(shape)
        self.mapped.append(tensor)
        return tensor


def save_mapped(make: Callable[[Scratch], Any], output: Path, force: bool, advance: Advance = ignore) -> None:
    """Write a checkpoint whose tensors are mapped; it has a temporary name until it is complete.

    Args:
        make: makes what is written.
        output: the file.
        force: whether it may be replaced.
        advance: told of the bytes that have been made.

    Raises:
        TaskMoEError: it cannot be written.
    """
    with new_file(output, f"--output {output}", replace=force) as temporary:
        try:
            with scratch_directory(output) as directory:
                scratch = Scratch(directory, advance)
                state = make(scratch)
                with ReleasingFile(temporary, scratch.mapped) as file:
                    torch.save(state, file)
        except RuntimeError as error:
            raise cause_of(error) from None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


class ReleasingFile(io.FileIO):
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
