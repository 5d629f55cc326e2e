"""The files that hold the experts of a checkpoint whose experts were spread over processes.

Next to the checkpoint, which has all other weights and says which files these are, there is one file for each process
in the folder ``experts``, with its slices of the stacked experts and of their optimizer state, by name. The names of
files are never used twice, and the checkpoint is written after them: whenever a run is killed, every checkpoint that is
there is complete.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.files.loading import LoadError, MissingFile, load
from taskmoe_plugin.files.writing import new_file, save
from taskmoe_plugin.parallel.manifest import FOLDER, Manifest
from taskmoe_plugin.parallel.placement import held_by


def write_shard(
    path: Path, file: str, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any], numbers: Mapping[str, int]
) -> None:
    """Write one process's file, under a temporary name until it is complete.

    Args:
        path: where to.
        file: its name in the checkpoint, which it carries so that it cannot be taken for another.
        weights: its slices (E/W, …) by name.
        optimizer: their optimizer state by name.
        numbers: their numbers among all parameters, by which the checkpoint knows the optimizer state of the others.

    Raises:
        OSError: its folder cannot be made.
        TaskMoEError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {"file": file, "model": dict(weights), "optimizer": dict(optimizer), "numbers": dict(numbers)}
    with new_file(path, str(path)) as temporary:
        save(contents, temporary)


def is_by_expert(key: str, value: Any, shape: Sequence[int]) -> bool:
    """Whether the first dimension of a part of an optimizer's state is that of the experts.

    Moments are. Of what Adafactor keeps, the mean over a matrix's rows or columns is; for a bias, the mean over what it
    takes for rows is one over experts.

    Args:
        key: the name of the part.
        value: the part.
        shape: that of the parameter, the experts first.
    """
    if not isinstance(value, Tensor) or not value.dim():
        return False
    if len(shape) == 2 and key.endswith("_col"):
        return False
    return value.dim() >= len(shape) - 1


class ExpertShards(Mapping[str, Tensor]):
    """The stacked experts of one checkpoint, by the parameters' names. They stay on disk until they are asked for.

    A file is opened, and must be there, when the first of its experts is asked for.

    Args:
        manifest: what the checkpoint has under ``KEY``.
        directories: where to look for the files.
        name: what to call the checkpoint in an error.

    Raises:
        TaskMoEError: the manifest, or later a file, is damaged or cannot be read.
    """

    def __init__(self, manifest: Any, directories: Iterable[Path], name: str) -> None:
        self._manifest = Manifest.read(manifest, name)
        self._name = name
        self._directory = max(directories, key=lambda place: sum(map(os.path.isfile, self._paths(place))))
        self._opened: dict[int, dict[str, Any]] = {}

    @property
    def experts(self) -> int:
        """E, the experts of each layer."""
        return self._manifest.experts

    @property
    def processes(self) -> int:
        """W, the processes over which they were spread."""
        return len(self._manifest.files)

    @property
    def files(self) -> list[Path]:
        """The files that hold them, process by process."""
        return list(self._paths(self._directory))

    def check_complete(self) -> None:
        """Raise an error that names a file if one of them is not there."""
        for path in self._paths(self._directory):
            try:
                path.stat()
            except (FileNotFoundError, NotADirectoryError) as error:
                raise _missing(path) from error
            except OSError as error:
                raise TaskMoEError(f"{path}: cannot be read ({error.strerror}); see that it can be") from error

    def __getitem__(self, name: str) -> Tensor:
        """A copy in memory of all experts of a layer, (E, …)."""
        return self.part(name, range(self.experts))

    def __contains__(self, name: object) -> bool:
        return name in self._manifest.parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self._manifest.parameters)

    def __len__(self) -> int:
        return len(self._manifest.parameters)

    def shape(self, name: str) -> torch.Size:
        """(E, …), the shape of a parameter; opens at most one file."""
        return torch.Size((self.experts, *self._any_part("model", name).shape[1:]))

    def nbytes(self, name: str) -> int:
        """The bytes of a parameter; opens at most one file."""
        part: Tensor = self._any_part("model", name)
        return part.nbytes // part.size(0) * self.experts

    def expert(self, name: str, index: int) -> Tensor:
        """The parameter of one expert, still on disk."""
        process, place = divmod(index, self._manifest.each)
        return self.weight_part(name, process)[place]

    def part(self, name: str, experts: range) -> Tensor:
        """A copy in memory of some neighbouring experts, (len(experts), …)."""
        return torch.cat([self.weight_part(name, process)[own] for process, own in self._parts(experts)])

    def optimizer_state(self, name: str, experts: range, without: Container[str] = ()) -> dict[str, Any]:
        """The optimizer state of some neighbouring experts; empty if there is none. Tensors are copies in memory.

        Args:
            name: the parameter.
            experts: which.
            without: parts that are left out.
        """
        parts = [(self.optimizer_part(name, process), own) for process, own in self._parts(experts)]
        shape = self.shape(name)
        found = {}
        for key, first in parts[0][0].items():
            if key in without:
                continue
            if is_by_expert(key, first, shape):
                found[key] = torch.cat([state[key][own] for state, own in parts])
            elif isinstance(first, Tensor) and first.dim():
                # A mean over the experts of a process, of which all have as many.
                found[key] = torch.stack([state[key] for state, _ in parts]).mean(dim=0)
            else:
                found[key] = first
        return found

    def weight_part(self, name: str, process: int) -> Tensor:
        """What one process has of a parameter, (E/W, …), still on disk."""
        return self._part(process, "model", name)  # type: ignore[no-any-return]

    def optimizer_part(self, name: str, process: int) -> dict[str, Any]:
        """The optimizer state of what one process has of a parameter, still on disk."""
        return self._part(process, "optimizer", name)  # type: ignore[no-any-return]

    def number(self, name: str) -> int:
        """The number of a parameter among all parameters, those that are no experts' included."""
        return self._any_part("numbers", name)  # type: ignore[no-any-return]

    def _any_part(self, kind: str, name: str) -> Any:
        return self._part(next(iter(self._opened), 0), kind, name)

    def _part(self, process: int, kind: str, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return self._shard(process)[kind][name]

    def _parts(self, experts: range) -> Iterator[tuple[int, slice]]:
        """The processes that hold some neighbouring experts, and which of theirs these are."""
        for process in range(self.processes):
            held = held_by(process, self.processes, self.experts)
            first, last = max(held.start, experts.start), min(held.stop, experts.stop)
            if first < last:
                yield process, slice(first - held.start, last - held.start)

    def _paths(self, directory: Path) -> list[Path]:
        return [directory / file for file in self._manifest.files]

    def _shard(self, process: int) -> dict[str, Any]:
        if process not in self._opened:
            path = self._paths(self._directory)[process]
            try:
                shard = load(path)
            except MissingFile as error:
                raise _missing(path) from error
            except LoadError as error:
                raise TaskMoEError(f"{error.of(path)}, or use another checkpoint") from error
            self._check(path, self._manifest.files[process], shard)
            self._opened[process] = shard
        return self._opened[process]

    def _check(self, path: Path, file: str, shard: Any) -> None:
        written = shard.get("file") if isinstance(shard, dict) else None
        if written != file:
            raise TaskMoEError(
                f"{path}: is of another run or save ({written if isinstance(written, str) else 'no file of experts'}); "
                "restore the file that was there"
            )
        known = next(iter(self._opened.values()), shard)
        for name in self:
            if not _fits(shard, known, name, self._manifest.each):
                raise TaskMoEError(
                    f"{path}: does not have {self._manifest.each} experts of {name}, as {self._name} says; restore the "
                    "files that were there"
                )


def _fits(shard: dict[str, Any], known: dict[str, Any], name: str, each: int) -> bool:
    """Whether a file has what it must have of a parameter, shaped like what another file has."""
    try:
        weight, state, number = (shard[kind][name] for kind in ("model", "optimizer", "numbers"))
        if type(number) is not int or weight.shape != known["model"][name].shape or len(weight) != each:
            return False
        shapes, others = (
            {key: getattr(value, "shape", None) for key, value in found.items()}
            for found in (state, known["optimizer"][name])
        )
        return shapes == others and all(
            len(value) == each for key, value in state.items() if is_by_expert(key, value, weight.shape)
        )
    except (AttributeError, KeyError, TypeError):
        return False


def _missing(path: Path) -> TaskMoEError:
    return TaskMoEError(
        f"{path}: no such file, but the checkpoint has experts in it; put the folder '{FOLDER}' next to the "
        "checkpoint, or use another checkpoint"
    )
