"""The checkpoint that is converted. Its tensors stay on disk until one is asked for."""

from __future__ import annotations

from argparse import Namespace
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf
from torch import Tensor

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.files.loading import LoadError, load
from taskmoe_plugin.models.config import check_format, set_moe_defaults
from taskmoe_plugin.models.loading import MODEL, model_name, reading_flags
from taskmoe_plugin.models.subnet_shape import SubnetShape
from taskmoe_plugin.parallel.manifest import KEY, is_stacked
from taskmoe_plugin.parallel.shards import ExpertShards
from taskmoe_plugin.subnet.checkpoint import MappedTensors
from taskmoe_plugin.subnet.scratch import Scratch

DENSE = "transformer"


@dataclass(frozen=True)
class Source:
    """A checkpoint of a ``transformer`` or a ``taskmoe_transformer``.

    Attributes:
        path: where it is.
        state: what is in it, its tensors mapped; ``args`` of old versions of fairseq are under ``cfg``.
        tensors: those of the model, experts in files of their own included.
    """

    path: Path
    state: dict[str, Any]
    tensors: MappedTensors

    @classmethod
    def open(cls, path: Path) -> Source:
        """Map a checkpoint into memory without reading its tensors.

        Raises:
            TaskMoEError: the file is missing, broken, unsafe, or of another model, or its tensors are not those of its
                flags.
        """
        try:
            state = load(path)
        except LoadError as error:
            raise TaskMoEError(error.of(path)) from error
        if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
            raise TaskMoEError(f"{path}: no checkpoint of fairseq; give a checkpoint_*.pt that training wrote")
        state = {**state, "cfg": _cfg(path, state), "args": None}
        args = state["cfg"]["model"]
        with reading_flags(str(path)):
            _check_model(path, args)
        if KEY in state["model"]:
            ExpertShards(state["model"][KEY], [path.absolute().parent], str(path)).check_complete()
        tensors = MappedTensors.of_model(path, str(path), args, state["model"])
        tensors.read_alone()
        tensors.check(args)
        return cls(path, state, tensors)

    @property
    def cfg(self) -> dict[str, Any]:
        """A copy of fairseq's configuration, of which ``model`` and ``task`` are Namespaces, to be changed freely."""
        return deepcopy(self.state["cfg"])

    @property
    def is_dense(self) -> bool:
        """Whether it has no experts."""
        return not any(map(is_stacked, self.tensors.names()))

    def kept(self, name: str, scratch: Scratch) -> Tensor:
        """A tensor as it is, still on disk; experts in files of their own are put together."""
        if name in self.state["model"]:
            return self.tensors.mapped(name)
        count = self.tensors.shape(name)[0]
        return scratch.stack((self.tensors.expert(name, expert) for expert in range(count)), count)

    def require(self, dense: bool, remedy: str) -> None:
        """Refuse a model that is not what a conversion is for.

        Args:
            dense: whether it must be dense, or must have experts.
            remedy: what to do, if it is not.

        Raises:
            TaskMoEError: it is not.
        """
        if self.is_dense != dense:
            found = "dense" if self.is_dense else "a mixture of experts already"
            raise TaskMoEError(f"{self.path}: is {found}; {remedy}")


def _cfg(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    cfg = state.get("cfg")
    if not isinstance(cfg, dict) and isinstance(state.get("args"), Namespace):
        cfg = OmegaConf.to_container(convert_namespace_to_omegaconf(state["args"]), enum_to_str=True)
    if not isinstance(cfg, dict) or "model" not in cfg or "task" not in cfg:
        raise TaskMoEError(f"{path}: does not say what model it is; give a checkpoint_*.pt that training wrote")
    as_namespace = {
        part: Namespace(**cfg[part]) if isinstance(cfg[part], dict) else cfg[part] for part in ("model", "task")
    }
    return {**cfg, **as_namespace}


def _check_model(path: Path, args: Namespace) -> None:
    name = model_name(args)
    if name not in (DENSE, MODEL):
        raise TaskMoEError(f"{path}: a checkpoint of {name or 'an unknown model'}; give one of {DENSE} or {MODEL}")
    if SubnetShape.is_subnet(args):
        raise TaskMoEError(f"{path}: is a subnet; give the checkpoint that it was extracted from")
    if name == MODEL:
        check_format(args, str(path))
        set_moe_defaults(args)  # a checkpoint of an earlier version lacks the flags that came after it
