"""The files that hold the experts of a checkpoint whose experts were spread over processes.

Next to the checkpoint, which has all other weights and says which files these are, there is one file for each process
in the folder ``experts``, with its slices of the stacked experts and of their optimizer state, by name. The names of
files are never used twice, and the checkpoint is written after them: whenever a run is killed, every checkpoint that is
there is complete.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.files.loading import exact_offsets
from taskmoe_plugin.files.writing import save
from taskmoe_plugin.parallel.placement import held_by

KEY = "expert_shards"  # among the tensors of a checkpoint's model: its manifest
FOLDER = "experts"
BROKEN = "truncated or corrupted"
_EXPERTS = re.compile(r"\.moe\.experts\.fc[12]_(weight|bias)$")


def is_stacked(name: str) -> bool:
    """Whether a parameter of this name is a stack of all experts of a layer."""
    return _EXPERTS.search(name) is not None


def make_manifest(save: str, processes: int, experts: int, names: Iterable[str]) -> dict[str, Any]:
    """What a checkpoint says of its experts.

    Args:
        save: a name that no other save has.
        processes: W, over which the experts are spread.
        experts: E, the experts of each layer.
        names: the names of the stacked parameters.

    Returns:
        ``experts`` is E; ``files``, the files of the processes, relative to the checkpoint's directory; ``parameters``,
        the names.
    """
    files = [f"{FOLDER}/{save}-{process}of{processes}.pt" for process in range(processes)]
    return {"experts": experts, "files": files, "parameters": list(names)}


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
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    contents = {"file": file, "model": dict(weights), "optimizer": dict(optimizer), "numbers": dict(numbers)}
    save(contents, temporary)
    temporary.replace(path)


def load_mapped(path: Path) -> Any:
    """A file that torch.save wrote, its tensors still on disk.

    Raises:
        ValueError: it is truncated, broken or unsafe; the text says which.
    """
    try:
        with exact_offsets():
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = re.search("Unsupported (global|class)", str(error)) is not None
        raise ValueError("holds Python objects that safe loading refuses" if unsafe else BROKEN) from error
    except (RuntimeError, OSError, EOFError, KeyError) as error:
        raise ValueError(BROKEN) from error


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
    """

    def __init__(self, manifest: Mapping[str, Any], directories: Iterable[Path]) -> None:
        self.experts: int = manifest["experts"]
        self.files: list[str] = manifest["files"]
        self.parameters: list[str] = manifest["parameters"]
        self.directory = max(directories, key=lambda place: sum((place / file).is_file() for file in self.files))
        self._opened: dict[int, dict[str, Any]] = {}

    def check_complete(self) -> None:
        """Raise an error that names a file if one of them is not there."""
        for file in self.files:
            self._find(file)

    def __getitem__(self, name: str) -> Tensor:
        """A copy in memory of all experts of a layer, (E, …)."""
        return self.part(name, range(self.experts))

    def __contains__(self, name: object) -> bool:
        return name in self.parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def shape(self, name: str) -> torch.Size:
        """(E, …), the shape of a parameter; opens at most one file."""
        process = next(iter(self._opened), 0)
        return torch.Size((self.experts, *self._part(process, "model", name).shape[1:]))

    def nbytes(self, name: str) -> int:
        """The bytes of a parameter; opens at most one file."""
        part: Tensor = self._part(next(iter(self._opened), 0), "model", name)
        return part.nbytes // part.size(0) * self.experts

    def expert(self, name: str, index: int) -> Tensor:
        """The parameter of one expert, still on disk."""
        process, place = self._holder(index)
        return self._part(process, "model", name)[place]  # type: ignore[no-any-return]

    def part(self, name: str, experts: range) -> Tensor:
        """A copy in memory of some neighbouring experts, (len(experts), …)."""
        return torch.cat([self._part(process, "model", name)[own] for process, own in self._parts(experts)])

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
        return self._part(next(iter(self._opened), 0), "numbers", name)  # type: ignore[no-any-return]

    def _part(self, process: int, kind: str, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return self._shard(process)[kind][name]

    def _holder(self, index: int) -> tuple[int, int]:
        each = self.experts // len(self.files)
        return index // each, index % each

    def _parts(self, experts: range) -> Iterator[tuple[int, slice]]:
        """The processes that hold some neighbouring experts, and which of theirs these are."""
        for process in range(len(self.files)):
            held = held_by(process, len(self.files), self.experts)
            first, last = max(held.start, experts.start), min(held.stop, experts.stop)
            if first < last:
                yield process, slice(first - held.start, last - held.start)

    def _find(self, file: str) -> Path:
        path = self.directory / file
        if not path.is_file():
            raise TaskMoEError(
                f"{path}: no such file, but the checkpoint has experts in it; put the folder '{FOLDER}' next to the "
                "checkpoint, or use another checkpoint"
            )
        return path

    def _shard(self, process: int) -> dict[str, Any]:
        if process not in self._opened:
            file = self.files[process]
            path = self._find(file)
            try:
                shard = load_mapped(path)
            except ValueError as error:
                raise TaskMoEError(f"{path}: {error}; restore it, or use another checkpoint") from error
            if not isinstance(shard, dict) or shard.get("file") != file:
                written = shard.get("file", "no file of experts") if isinstance(shard, dict) else "no file of experts"
                raise TaskMoEError(f"{path}: is of another run or save ({written}); restore the file that was there")
            self._opened[process] = shard
        return self._opened[process]


def manifests(directory: Path) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """The checkpoints in a directory, each with what it has under ``KEY``.

    Raises:
        ValueError: one cannot be read.
    """
    for path in sorted(directory.glob("*.pt")):
        state = load_mapped(path)
        model = state.get("model") if isinstance(state, dict) else None
        yield path, model.get(KEY) if isinstance(model, dict) else None


def remove_unused(directory: Path) -> None:
    """Remove the files of experts that no checkpoint in a directory refers to: fairseq has removed theirs.

    Where a checkpoint cannot be read, nothing is removed.
    """
    folder = directory / FOLDER
    if not folder.is_dir():
        return
    try:
        used = {file for _, manifest in manifests(directory) if manifest for file in manifest["files"]}
    except ValueError:
        return
    for path in folder.iterdir():
        if f"{FOLDER}/{path.name}" not in used and path.name.endswith((".pt", ".pt.tmp")):
            path.unlink()
