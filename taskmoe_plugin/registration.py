"""Making fairseq know of what the package adds to it."""

from __future__ import annotations

import os
from argparse import Namespace
from importlib import import_module

PARTS = ("criterions", "models", "tasks")


def register() -> None:
    """Register task, models, architectures and criterions with fairseq, and let its checkpoints load safely.

    Parts that need fairseq call this when they are imported, so that it does not matter which a program imports.
    """
    import torch

    # fairseq's checkpoints hold flags in a Namespace, which PyTorch's safe loading refuses unless told it is harmless.
    torch.serialization.add_safe_globals([Namespace])
    # With this variable fairseq would run whatever a checkpoint brings along. PyTorch looks at it anew for every file.
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    for part in PARTS:
        import_module(f"taskmoe_plugin.{part}")
