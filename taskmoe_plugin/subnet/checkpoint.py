"""The trained model's file. Its tensors stay on disk until one is asked for."""

from __future__ import annotations

import hashlib
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.files.loading import LoadError, MissingFile, load
from taskmoe_plugin.models.config import MAX_EXPERTS, STACKS, check_format, set_moe_defaults
from taskmoe_plugin.models.loading import MODEL, check_weights, model_name, reading_flags
from taskmoe_plugin.models.packed_experts import KEY as PACKED
from taskmoe_plugin.models.packed_experts import PackedParameters
from taskmoe_plugin.models.subnet_shape import SubnetShape
from taskmoe_plugin.models.task_table import split_pair
from taskmoe_plugin.parallel.manifest import KEY
from taskmoe_plugin.parallel.shards import ExpertShards
from taskmoe_plugin.subnet import pages

TIED = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"


class MappedTensors:
    """The tensors of a model in a memory-mapped checkpoint; those that share weights are one.

    Args:
        name: what to call the checkpoint in an error.
        tensors: those that are in it.
        tied: names of tensors that are the same as another one, and of that.
        apart: the stacked experts that are not among them: in files of their own, of which only those are opened that
            are asked for, or quantised.
    """

    def __init__(
        self, name: str, tensors: dict[str, Tensor], tied: Mapping[str, str], apart: ExpertShards | PackedParameters
    ) -> None:
        self.name = name
        self.tied = tied
        self._tensors = tensors
        self._apart = apart

    @classmethod
    def of_model(cls, path: Path, name: str, args: Namespace, model: Mapping[str, Any]) -> MappedTensors:
        """The tensors of a checkpoint's model, as it has them.

        Args:
            path: the checkpoint.
            name: what to call it in an error.
            args: the model's arguments.
            model: its tensors by name, and what it says of experts that are not among them.

        Raises:
            TaskMoEError: that is damaged.
        """
        own = {each: value for each, value in model.items() if isinstance(value, Tensor)}
        for each, value in own.items():
            if value.layout != torch.strided:
                raise TaskMoEError(f"{name}: the tensor {each} is sparse; give a checkpoint that training wrote")
        manifest = model.get(KEY)
        shards = ExpertShards(manifest, [path.absolute().parent], name) if manifest else None
        return cls(name, own, tied_names(args), shards or PackedParameters(model.get(PACKED, {}), name))

    def read_alone(self) -> None:
        """Have reading one tensor not read what lies next to it in the file that they are all in."""
        pages.disable_readahead(self._tensors.values())

    def names(self) -> list[str]:
        """The names of all tensors."""
        return [*self._tensors, *self._apart]

    def shape(self, name: str) -> torch.Size:
        """The shape of a tensor."""
        return self._apart.shape(name) if name in self._apart else self.mapped(name).shape

    def nbytes(self, name: str) -> int:
        """The bytes of a tensor, as it is stored."""
        return self._apart.nbytes(name) if name in self._apart else self.mapped(name).nbytes

    def tensor(self, name: str, rows: Tensor | None = None) -> Tensor:
        """A copy of a tensor in memory, or of some of its rows (int64)."""
        if name in self._apart:
            return self._apart[name]
        mapped = self.mapped(name)
        return pages.read(mapped) if rows is None else pages.read_rows(mapped, rows)

    def expert(self, name: str, index: int) -> Tensor:
        """A copy in memory of one expert's part of a stacked tensor; nothing else of it is read."""
        if name not in self._apart:
            return pages.read(self.mapped(name)[index])
        expert = self._apart.expert(name, index)
        return pages.read(expert) if isinstance(self._apart, ExpertShards) else expert

    def mapped(self, name: str) -> Tensor:
        """A tensor that is still on disk.

        Raises:
            TaskMoEError: there is no tensor of this name.
        """
        try:
            return self._tensors[name]
        except KeyError:
            raise TaskMoEError(
                f"{self.name}: the tensor {name} is missing; give a complete checkpoint, not one process's share"
            ) from None

    def check(self, args: Namespace) -> None:
        """Refuse tensors that are not those of a model's arguments.

        Raises:
            TaskMoEError: one is missing, has another shape, or belongs to nothing.
        """
        apart = {name: torch.empty(self.shape(name), device="meta") for name in self._apart}
        check_weights(args, {**self._tensors, **apart}, self.name)

    def all(self) -> dict[str, Tensor]:
        """All tensors by name; experts that are not among the others in memory, all others still on disk."""
        return {**self._tensors, **self._apart}


@dataclass(frozen=True)
class Checkpoint:
    """A ``taskmoe_transformer`` checkpoint.

    Attributes:
        path: where it is.
        cfg: fairseq's configuration, of which ``model`` and ``task`` are argparse Namespaces.
        optimizer_history: fairseq's record of optimizers, without their states.
        tensors: the tensors of the model.
    """

    path: Path
    cfg: dict[str, Any]
    optimizer_history: list[dict[str, Any]]
    tensors: MappedTensors

    @property
    def name(self) -> str:
        """What to call it in an error."""
        return self.tensors.name

    @property
    def args(self) -> Namespace:
        """The arguments of the model."""
        return self.cfg["model"]  # type: ignore[no-any-return]

    @cached_property
    def langs(self) -> list[str]:
        """The languages, in the order of their ids."""
        return self.args.taskmoe_langs.split(",")  # type: ignore[no-any-return]

    @cached_property
    def pairs(self) -> list[str]:
        """The language pairs that the model was trained on, or pruned to."""
        for stack in STACKS:
            shape = SubnetShape.of(self.args, stack)
            if shape is not None and shape.restriction is not None:
                return list(shape.restriction.pairs)
        return self.args.taskmoe_lang_pairs.split(",")  # type: ignore[no-any-return]

    @property
    def low_rank(self) -> int:
        """The rank of the low-rank language matrices; 0 if there are none."""
        return self.args.task_low_rank  # type: ignore[no-any-return]

    @classmethod
    def open(cls, path: Path, name: str | None = None) -> Checkpoint:
        """Map a checkpoint into memory without reading its tensors.

        Args:
            path: where it is.
            name: what to call it in an error; None: by its path.

        Raises:
            TaskMoEError: the file is missing, broken, unsafe, or no ``taskmoe_transformer`` checkpoint, or its tensors
                are not those of its flags.
        """
        name = name or str(path)
        state = _load(path, name)
        cfg = state.get("cfg") if isinstance(state, dict) else None
        if (
            not isinstance(cfg, dict)
            or not isinstance(state.get("model"), dict)
            or not {"model", "task", "criterion", "common"} <= cfg.keys()
            or "optimizer_history" not in state
        ):
            raise TaskMoEError(f"{name}: not a fairseq checkpoint; give a checkpoint_*.pt that training wrote")
        args = cfg["model"]
        with reading_flags(name):
            _check_model(name, args)
            check_format(args, name)
            set_moe_defaults(args)  # a checkpoint of an earlier version lacks the flags that came after it
            tensors = MappedTensors.of_model(path, name, args, state["model"])
            found = cls(path, cfg, state["optimizer_history"], tensors)
            _check_codes(name, [*found.langs, *(code for pair in found.pairs for code in split_pair(pair))])
        tensors.read_alone()
        tensors.check(args)
        return found


def _load(path: Path, name: str) -> Any:
    try:
        return load(path)
    except MissingFile as error:
        raise TaskMoEError(f"{name}: {error}; give a checkpoint_*.pt that training wrote") from error
    except LoadError as error:
        raise TaskMoEError(error.of(name)) from error


def _check_model(name: str, args: Any) -> None:
    model = model_name(args)
    if model != MODEL:
        kind = "a dense model, which has no experts" if model == "transformer" else f"not {MODEL}"
        raise TaskMoEError(f"{name}: a checkpoint of {model or 'an unknown model'}, {kind}; give one of {MODEL}")
    if SubnetShape.is_subnet(args):
        raise TaskMoEError(f"{name}: is a subnet already; give the checkpoint that it was extracted from")
    if args.moe_expert_count > MAX_EXPERTS:
        raise TaskMoEError(
            f"{name}: its flags say {args.moe_expert_count} experts, which no model has; give a checkpoint that "
            "training wrote"
        )


def _check_codes(name: str, codes: Iterable[str]) -> None:
    """Refuse languages that would lead out of the directory in which files are named after them."""
    for code in codes:
        if "/" in code or code.startswith(".") or not code.isprintable():
            raise TaskMoEError(
                f"{name}: has a language named {code!r}, which is no code of a language; copy the checkpoint again"
            )


def tied_names(args: Namespace) -> dict[str, str]:
    """Tensors that are the same parameter as another one, which fairseq stores once or several times over."""
    source, target, output = TIED
    tied = {}
    if args.share_all_embeddings or getattr(args, "merge_src_tgt_embed", False):
        tied = {target: source, output: source}
    elif args.share_decoder_input_output_embed:
        tied = {output: target}
    return tied


def sha256(path: Path, advance: Callable[[int], object]) -> str:
    """SHA-256 of a file, in hexadecimal; ``advance`` is told of the bytes as they are read."""
    digest, chunk = hashlib.sha256(), bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(chunk):
            digest.update(memoryview(chunk)[:count])
            advance(count)
    return digest.hexdigest()
