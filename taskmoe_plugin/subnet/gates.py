"""Which experts a task has in each MoE layer, and with what weights: read from the routers in a checkpoint."""

from __future__ import annotations

import torch

from taskmoe_plugin.models.stack import StackConfig
from taskmoe_plugin.moe import Gates, TableRouter
from taskmoe_plugin.subnet.checkpoint import MappedTensors


def task_tables(tensors: MappedTensors, config: StackConfig, layers: list[int]) -> dict[int, Gates]:
    """The gates of all tasks, U = number of tasks, in each of the given MoE layers of a stack that routes by task.

    Args:
        tensors: the model.
        config: the stack.
        layers: indices of its MoE layers.

    Raises:
        TaskMoEError: a router's tensors are missing.
    """
    return {layer: _table(tensors, config, f"{config.stack}.layers.{layer}.moe.router.") for layer in layers}


def _table(tensors: MappedTensors, config: StackConfig, prefix: str) -> Gates:
    router = config.build_router()
    assert isinstance(router, TableRouter)
    router.load_state_dict({name: tensors.tensor(prefix + name) for name in router.state_dict()})
    with torch.no_grad():
        return router.eval().table()
