"""What a checkpoint says of the files that hold its experts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from taskmoe_plugin.errors import TaskMoEError

KEY = "expert_shards"  # among the tensors of a checkpoint's model: its manifest
FOLDER = "experts"
_FILE = re.compile(rf"{FOLDER}/\w[\w.-]{{0,100}}\.pt")
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


@dataclass(frozen=True)
class Manifest:
    """A manifest that makes sense.

    Attributes:
        experts: E, the experts of each layer.
        files: the files of the processes, relative to the checkpoint's directory; their number divides E.
        parameters: the names of the stacked parameters.
    """

    experts: int
    files: tuple[str, ...]
    parameters: tuple[str, ...]

    @classmethod
    def read(cls, value: Any, name: str) -> Manifest:
        """Read what ``make_manifest`` has made.

        Args:
            value: what the checkpoint has under ``KEY``.
            name: what to call the checkpoint, a path or a flag and its value.

        Raises:
            TaskMoEError: it is damaged.
        """
        for problem in _problems(value):
            raise TaskMoEError(f"{name}: what it says of its experts' files is damaged ({problem}); copy it again")
        return cls(value["experts"], tuple(value["files"]), tuple(value["parameters"]))

    @property
    def each(self) -> int:
        """The experts of each file."""
        return self.experts // len(self.files)


def _problems(value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping) or not {"experts", "files", "parameters"} <= value.keys():
        yield "it does not name experts, files and parameters"
        return
    experts, files, parameters = value["experts"], value["files"], value["parameters"]
    if type(experts) is not int or experts < 1:
        yield "the number of experts is none"
    elif not _are_texts(files) or not all(map(_FILE.fullmatch, files)):
        yield f"the files are not of the folder '{FOLDER}'"
    elif len(set(files)) != len(files) or not files or experts % len(files):
        yield f"{experts} experts are not in {len(set(files))} files"
    elif not _are_texts(parameters) or not all(map(is_stacked, parameters)):
        yield "the parameters are not those of experts"


def _are_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value)
