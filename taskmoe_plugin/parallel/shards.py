"""The files that hold the experts of a checkpoint whose experts were spread over processes.

Next to the checkpoint, which has all other weights and says which files these are, there is one file for each process
in the folder ``experts``, with the weights of its experts and their optimizer state, by name. The names of files are
never used twice, and the checkpoint is written after them: whenever a run is killed, every checkpoint that is there is
complete.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.moe import AbsentExpert, held_by

KEY = "expert_shards"  # among the tensors of a checkpoint's model: its manifest
FOLDER = "experts"
BROKEN = "truncated or corrupted"
_EXPERT = re.compile(r"(?<=\.moe\.experts\.)\d+(?=\.)")


def expert_of(name: str) -> int | None:
    """The global index of the expert that a parameter belongs to; None if it is no expert's."""
    found = _EXPERT.search(name)
    return int(found[0]) if found else None


def make_manifest(save: str, processes: int, experts: int, names: Iterable[str]) -> dict[str, Any]:
    """What a checkpoint says of its experts.

    Args:
        save: a name that no other save has.
        processes: W, over which the experts are spread.
        experts: E, the experts of each layer.
        names: the names of the parameters of one process's experts.

    Returns:
        ``experts`` is E; ``files``, the files of the processes, relative to the checkpoint's directory;
        ``parameters``, the names of all experts' parameters, with {} in place of the expert's index.
    """
    return {
        "experts": experts,
        "files": [f"{FOLDER}/{save}-{process}of{processes}.pt" for process in range(processes)],
        "parameters": list(dict.fromkeys(_EXPERT.sub("{}", name) for name in names)),
    }


def write_shard(
    path: Path, file: str, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any], numbers: Mapping[str, int]
) -> None:
    """Write one process's file, under a temporary name until it is complete.

    Args:
        path: where to.
        file: its name in the checkpoint, which it carries so that it cannot be taken for another.
        weights: the weights of its experts by name.
        optimizer: their optimizer state by name.
        numbers: their numbers among all parameters, by which the checkpoint knows the optimizer state of the others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    contents = {"file": file, "model": dict(weights), "optimizer": dict(optimizer), "numbers": dict(numbers)}
    torch.save(contents, temporary)
    temporary.replace(path)


def exact_offsets() -> AbstractContextManager[Any]:
    """Within the context PyTorch computes where tensors are in a file, rather than look each of them up in it."""
    try:
        from torch.utils.serialization import config
    except ImportError:  # before PyTorch 2.7
        return nullcontext()
    return config.patch({"load.calculate_storage_offsets": True})  # type: ignore[no-any-return, attr-defined]


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


class ExpertShards(Mapping[str, Tensor]):
    """The parameters of the experts of one checkpoint, by name. They stay on disk.

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
        return self._of(name)["model"][name]  # type: ignore[no-any-return]

    def __contains__(self, name: object) -> bool:
        expert = expert_of(str(name))
        return expert is not None and expert < self.experts and _EXPERT.sub("{}", str(name)) in self.parameters

    def __iter__(self) -> Iterator[str]:
        return (pattern.format(expert) for pattern in self.parameters for expert in range(self.experts))

    def __len__(self) -> int:
        return self.experts * len(self.parameters)

    def alike(self, name: str) -> Tensor:
        """A tensor of the shape and type of a parameter: as all experts are alike, of one whose file is open."""
        process = next(iter(self._opened), 0)
        first = held_by(process, len(self.files), self.experts)[0]
        return self[_EXPERT.sub(str(first), name)]

    def optimizer_state(self, name: str) -> dict[str, Any]:
        """The optimizer state of a parameter, still on disk; empty if it has none."""
        return self._of(name)["optimizer"][name]  # type: ignore[no-any-return]

    def number(self, name: str) -> int:
        """The number of a parameter among all parameters, those that are no experts' included."""
        return self._of(name)["numbers"][name]  # type: ignore[no-any-return]

    def _of(self, name: str) -> dict[str, Any]:
        expert, processes = expert_of(name), len(self.files)
        if expert is None or name not in self:
            raise KeyError(name)
        (holder,) = (each for each in range(processes) if expert in held_by(each, processes, self.experts))
        return self._shard(holder)

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


def absent_parameters(model: nn.Module) -> set[str]:
    """The names of the parameters that stand for experts of other processes."""
    stand_ins = [(prefix, each) for prefix, each in model.named_modules() if isinstance(each, AbsentExpert)]
    return {f"{prefix}.{name}" for prefix, each in stand_ins for name, _ in each.named_parameters()}


def with_experts(
    model: nn.Module, state_dict: Mapping[str, Any], directories: Iterable[Path]
) -> tuple[dict[str, Any], ExpertShards | None]:
    """What a model has to load: the tensors of a checkpoint with the experts that this process holds, and no others.

    Args:
        model: the model, some of whose experts may be on other processes.
        state_dict: the checkpoint's tensors, with all experts or with what it has under ``KEY``.
        directories: where the checkpoint may be.

    Returns:
        The tensors, and the files of the experts if there are such.
    """
    manifest = state_dict.get(KEY)
    state = {name: value for name, value in state_dict.items() if name != KEY}
    names = [name for name, _ in model.named_parameters() if expert_of(name) is not None]
    if names and manifest is None and not any(expert_of(name) is not None for name in state):
        raise TaskMoEError("the checkpoint has no experts: it was written in a crash; use an earlier one")
    shards = ExpertShards(manifest, directories) if manifest is not None else None
    if shards is not None:
        shards.check_complete()
    absent = absent_parameters(model)
    for name in names:
        if name in absent:
            state[name] = model.get_parameter(name).detach()
        elif shards is not None and name in shards:
            state[name] = shards[name]
    return state, shards
