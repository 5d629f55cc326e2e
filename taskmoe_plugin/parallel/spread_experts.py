"""Experts that are spread over processes, attached to fairseq's model, optimizer and checkpoints in one place."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from fairseq.distributed import LegacyDistributedDataParallel
from torch import Tensor, nn

from taskmoe_plugin.errors import TaskMoEError, UsageError
from taskmoe_plugin.files.writing import remove_leftovers
from taskmoe_plugin.parallel.gradients import clip_by_whole_norm, fit_buffer, ignore_in_ddp
from taskmoe_plugin.parallel.group import ExpertGroup
from taskmoe_plugin.parallel.manifest import FOLDER, KEY, is_stacked, make_manifest
from taskmoe_plugin.parallel.own_files import OwnFiles
from taskmoe_plugin.parallel.shards import ExpertShards, is_by_expert, write_shard


class SpreadExperts:
    """What fairseq does not know of experts that are, or were when a checkpoint was written, spread over processes.

    A model loads any checkpoint, whatever number of processes its experts were and are spread over. A checkpoint of a
    model whose experts are spread has, in their place, the names of the files that the processes have written.

    fairseq's trainer calls ``consolidate_state_dict`` of the optimizer on every process, if there is such a method,
    before the first process writes a checkpoint. Writing from that call, rather than along with the checkpoint, is what
    makes the checkpoint the last thing written.

    Args:
        model: a new model.
        group: the processes over which its experts are spread; None: this process has all of them.
        experts: E, the experts of each layer.
        directories: where a checkpoint that it loads may be.
        name: what to call that in an error.
    """

    def __init__(
        self, model: nn.Module, group: ExpertGroup | None, experts: int, directories: Sequence[Path], name: str
    ) -> None:
        self._model = model
        self._group = group
        self._experts = experts
        self._directories = directories
        self._name = name
        self._held = range(experts) if group is None else group.held(experts)
        self._manifest: dict[str, Any] | None = None
        self._own: OwnFiles | None = None
        self._loaded: ExpertShards | None = None
        self._loaded_whole = False
        model.register_load_state_dict_pre_hook(self._complete)  # type: ignore[no-untyped-call]
        if group is not None:
            # PyTorch marks the hook with an attribute, which a bound method cannot have.
            model.register_state_dict_post_hook(lambda *args: self._without_experts(*args))  # type: ignore[no-untyped-call]
            ignore_in_ddp(model)

    def attach(self, model: Any, optimizer: Any, directory: Path) -> None:
        """Attach a trainer's optimizer, before its first update.

        Args:
            model: the model, wrapped as the trainer has it.
            optimizer: its fairseq optimizer, into which a checkpoint may have been loaded.
            directory: where checkpoints are saved.
        """
        names = [name for name, parameter in self._model.named_parameters() if parameter.requires_grad]
        numbered = dict(zip(names, enumerate(optimizer.params)))
        stacked = {name: each for name, each in numbered.items() if is_stacked(name)}
        inner = optimizer.optimizer
        self._restore(inner, {name: parameter for name, (_, parameter) in stacked.items()})
        if self._group is None:
            return
        while hasattr(model, "module"):
            if isinstance(model, LegacyDistributedDataParallel):
                fit_buffer(model)
            model = model.module
        clip_by_whole_norm(optimizer, self._group)
        if self._group.rank == 0:
            # Before any process writes: what another machine writes may not look locked from here.
            remove_leftovers(directory / FOLDER)
            self._own = OwnFiles(directory)
        inner.consolidate_state_dict = lambda: self._save(inner, stacked, directory)
        numbers, whole = {number for number, _ in stacked.values()}, optimizer.state_dict
        optimizer.state_dict = lambda: _without(whole(), numbers)

    def remove_unused(self) -> None:
        """After a save, on the process that wrote the checkpoint: remove files of experts that none needs any more."""
        if self._own is not None:
            self._own.remove_unused()

    def _complete(self, module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """Replace what a checkpoint has of experts by those of this process."""
        manifest = state.pop(KEY, None)
        names = [name for name, _ in module.named_parameters() if is_stacked(name)]
        if manifest is not None:
            self._loaded, self._loaded_whole = ExpertShards(manifest, self._directories, self._name), False
            self._check_count(self._loaded.experts)
            self._loaded.check_complete()
            state.update({name: self._loaded.part(name, self._held) for name in names if name in self._loaded})
            return
        self._loaded, self._loaded_whole = None, True
        whole = {name: state[name] for name in names if name in state}
        if names and not whole:
            raise TaskMoEError(f"{self._name}: has no experts: it was written in a crash; use an earlier one")
        if self._group is not None:
            for each in whole.values():
                self._check_count(each.size(0))
            state.update({name: each[self._held.start : self._held.stop] for name, each in whole.items()})

    def _check_count(self, experts: int) -> None:
        # Slices of another number of experts may fit as well.
        if experts != self._experts:
            raise UsageError(
                f"--moe-expert-count {self._experts}: {self._name} has {experts} experts in each layer; give {experts}"
            )

    def _without_experts(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for name in [name for name in state if is_stacked(name)]:
            del state[name]
        if self._manifest is not None:
            state[KEY] = self._manifest

    def _restore(self, optimizer: Any, stacked: dict[str, Tensor]) -> None:
        """Complete the optimizer state that fairseq has restored from a checkpoint; without any, do nothing."""
        loaded, whole = self._loaded, self._loaded_whole
        states: dict[Tensor, Any] = optimizer.state
        # Another optimizer has nothing to take from this checkpoint.
        self._loaded, self._loaded_whole = None, False
        if not states:
            return
        for name, parameter in stacked.items():
            if loaded is not None and name in loaded:
                state = loaded.optimizer_state(name, self._held)
                states[parameter] = {key: _to(value, parameter.device) for key, value in state.items()}
            elif whole and self._group is not None and parameter in states:
                own = slice(self._held.start, self._held.stop)
                states[parameter] = {
                    key: value[own].clone() if is_by_expert(key, value, parameter.shape) else value
                    for key, value in states[parameter].items()
                }
        if loaded is not None:
            # As PyTorch ends its loading: what an optimizer keeps may not be what it writes.
            optimizer.__setstate__({"state": states, "param_groups": optimizer.param_groups})

    def _save(self, optimizer: Any, stacked: dict[str, tuple[int, Tensor]], directory: Path) -> None:
        """Write this process's experts, and wait until all processes have; a collective."""
        self._manifest = None
        if sys.exc_info()[0] is not None:
            # fairseq saves what it can of a crash. The other processes may be elsewhere, and would wait for each other.
            return
        assert self._group is not None
        weights, states = dict(self._model.named_parameters()), optimizer.state_dict()["state"]
        manifest = make_manifest(self._new_save(), self._group.size, self._experts, stacked)
        file = manifest["files"][self._group.rank]
        path, problem = directory / file, None
        if self._own is not None:
            self._own.before_save()
            self._own.add(manifest["files"])
        try:
            write_shard(
                path,
                file,
                utils.move_to_cpu({name: weights[name].detach() for name in stacked}),
                utils.move_to_cpu({name: states.get(number, {}) for name, (number, _) in stacked.items()}),
                {name: number for name, (number, _) in stacked.items()},
            )
        except OSError as error:
            problem = f"{directory / FOLDER}: cannot be made ({error.strerror})"
        except TaskMoEError as error:
            problem = str(error)
        if self._sum(int(problem is not None)):
            problem = problem or f"{path}: not kept, as another process cannot write its experts"
            raise TaskMoEError(f"{problem}; earlier checkpoints are complete")
        self._manifest = manifest

    def _new_save(self) -> str:
        # Random rather than counted: a run that starts again from an older checkpoint must not write over newer files.
        assert self._group is not None
        return f"{self._sum(secrets.randbits(48) if self._group.rank == 0 else 0):012x}"

    def _sum(self, number: int) -> int:
        assert self._group is not None
        return int(self._group.sum(torch.tensor([number], device=next(self._model.parameters()).device)))


def _without(state_dict: dict[str, Any], numbers: set[int]) -> dict[str, Any]:
    shared = {number: state for number, state in state_dict["state"].items() if number not in numbers}
    return {**state_dict, "state": shared}


def _to(value: Any, device: torch.device) -> Any:
    return value.detach().to(device, copy=True) if isinstance(value, Tensor) else value
