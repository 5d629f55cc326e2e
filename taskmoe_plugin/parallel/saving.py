"""Saving and restoring the optimizer state of experts, through what fairseq has for sharded optimizers."""

from __future__ import annotations

import secrets
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from fairseq.distributed import LegacyDistributedDataParallel
from fairseq.distributed import utils as distributed_utils
from torch import nn

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.parallel.gradients import clip_by_whole_norm, fit_buffer
from taskmoe_plugin.parallel.shards import (
    ExpertShards,
    absent_parameters,
    expert_of,
    make_manifest,
    write_shard,
)


class ExpertSaver:
    """Writes each process's experts when fairseq is about to save a checkpoint.

    fairseq then calls ``consolidate_state_dict`` of the optimizer on every process, if there is such a method, before
    the first process writes the checkpoint. Saving from that call, rather than along with the checkpoint, is what makes
    the checkpoint the last thing written.

    Attributes:
        manifest: where the experts were written last, for the checkpoint; None after an error.
    """

    def __init__(self, model: nn.Module, optimizer: Any, group: Any, directory: Path, experts: int) -> None:
        self.model = model
        self.group = group
        self.directory = directory
        self.experts = experts
        self.manifest: dict[str, Any] | None = None
        self._optimizer = optimizer.optimizer
        self._optimizer.consolidate_state_dict = self.save
        # PyTorch has a hook for this, but not in all versions.
        whole_state: Callable[[], dict[str, Any]] = self._optimizer.state_dict
        self._optimizer.state_dict = lambda: self._without_experts(whole_state())
        numbered, absent = numbered_parameters(model, optimizer), absent_parameters(model)
        self._experts = {number for name, (number, _) in numbered.items() if expert_of(name) is not None}
        self._held = {
            name: each for name, each in numbered.items() if expert_of(name) is not None and name not in absent
        }

    def save(self) -> None:
        """Write this process's experts, and wait until all processes have; a collective."""
        self.manifest = None
        if sys.exc_info()[0] is not None:
            # fairseq saves what it can of a crash. The other processes may be elsewhere, and would wait for each other.
            return
        rank, size = distributed_utils.get_rank(self.group), distributed_utils.get_world_size(self.group)
        weights = dict(self.model.named_parameters())
        manifest = make_manifest(self._new_save(), size, self.experts, self._held)
        path, problem = self.directory / manifest["files"][rank], None
        try:
            write_shard(
                path,
                manifest["files"][rank],
                utils.move_to_cpu({name: weights[name].detach() for name in self._held}),
                utils.move_to_cpu(
                    {name: self._optimizer.state.get(each, {}) for name, (_, each) in self._held.items()}
                ),
                {name: number for name, (number, _) in self._held.items()},
            )
        except OSError as error:
            problem = error.strerror
        if self._sum(int(problem is not None)):
            raise TaskMoEError(
                f"{path}: cannot be written ({problem or 'by another process'}); earlier checkpoints are complete"
            )
        self.manifest = manifest

    def _new_save(self) -> str:
        # Random rather than counted: a run that starts again from an older checkpoint must not write over newer files.
        return f"{self._sum(secrets.randbits(48) if distributed_utils.get_rank(self.group) == 0 else 0):012x}"

    def _sum(self, number: int) -> int:
        device = next(self.model.parameters()).device
        total = torch.tensor([number], device=device)
        distributed_utils.all_reduce(total, group=self.group)
        return int(total)

    def _without_experts(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        shared = {number: state for number, state in state_dict["state"].items() if number not in self._experts}
        return {**state_dict, "state": shared}


def numbered_parameters(model: nn.Module, optimizer: Any) -> dict[str, tuple[int, torch.Tensor]]:
    """The parameters of a fairseq optimizer, by the model's names: their numbers, and they or their copies."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return dict(zip(names, enumerate(optimizer.params)))


def restore_state(model: nn.Module, optimizer: Any, shards: ExpertShards | None) -> None:
    """Complete the optimizer state that fairseq has restored from a checkpoint; without any, do nothing.

    Args:
        model: the model.
        optimizer: its fairseq optimizer.
        shards: the experts of the checkpoint, if they were spread over processes.
    """
    states = optimizer.optimizer.state
    if not states:
        return
    absent = absent_parameters(model)
    for name, (_, parameter) in numbered_parameters(model, optimizer).items():
        if name in absent:
            states.pop(parameter, None)
        elif shards is not None and name in shards:
            states[parameter] = on(shards.optimizer_state(name), parameter.device)


def on(state: dict[str, Any], device: Any) -> dict[str, Any]:
    """A copy of a parameter's optimizer state on a device."""
    return {
        key: value.detach().to(device, copy=True) if torch.is_tensor(value) else value for key, value in state.items()
    }


def prepare_optimizer(model: Any, optimizer: Any, args: Namespace) -> None:
    """Get a new fairseq optimizer ready for a model, whose experts may be spread over processes.

    Args:
        model: the model, perhaps wrapped by fairseq.
        optimizer: its optimizer, into which fairseq may have loaded a checkpoint.
        args: all flags of fairseq-train.
    """
    while hasattr(model, "module"):
        if isinstance(model, LegacyDistributedDataParallel):
            fit_buffer(model)
        model = model.module
    restore_state(model, optimizer, model.shards)
    model.shards = None
    if model.parallel is not None:
        clip_by_whole_norm(optimizer, model.parallel.group)
        directory = Path(args.save_dir).absolute()
        model.saver = ExpertSaver(model, optimizer, model.parallel.group, directory, args.moe_expert_count)
