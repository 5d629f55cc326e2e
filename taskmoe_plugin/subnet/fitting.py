"""Giving a module the weights of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import shorten

from torch import Tensor, nn

from taskmoe_plugin.errors import TaskMoEError


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Load weights that must be all of a module's, and no others.

    Args:
        module: the module.
        weights: its weights by name.
        name: what to call the checkpoint that they are from.

    Raises:
        TaskMoEError: one is missing, has another shape, or belongs to nothing.
    """
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        problems = shorten(str(error).partition(":")[2], 200, placeholder="…")
        raise TaskMoEError(
            f"{name}: its tensors do not fit its flags ({problems}); give a checkpoint that training wrote, with "
            "nothing added"
        ) from error
