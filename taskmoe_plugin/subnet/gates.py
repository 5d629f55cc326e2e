"""Which experts a task has in each MoE layer, and with what weights: read from the gates in a checkpoint."""

from __future__ import annotations

import torch

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.models.loading import load_weights
from taskmoe_plugin.models.stack import StackConfig
from taskmoe_plugin.moe import Gates
from taskmoe_plugin.subnet.checkpoint import MappedTensors


def task_tables(tensors: MappedTensors, config: StackConfig) -> dict[int, Gates]:
    """The gates of all tasks, U = number of tasks, in each MoE layer of a stack that routes by task.

    Args:
        tensors: the model.
        config: the stack.

    Raises:
        TaskMoEError: the gates' tensors are missing, are not those of the flags, or are no finite numbers.
    """
    gates, prefix = config.build_gates(), f"{config.stack}.tasks.gates."
    weights = {name: tensors.tensor(prefix + name) for name in gates.state_dict()}
    load_weights(gates, weights, tensors.name)
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise TaskMoEError(
                f"{tensors.name}: {prefix}{name} has weights that are no finite numbers; give an earlier checkpoint"
            )
    with torch.no_grad():
        return dict(zip(config.moe_layers, gates.eval()().layers()))
