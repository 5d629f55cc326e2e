"""Making fairseq know of what the package adds to it."""

from __future__ import annotations

from argparse import Namespace
from importlib import import_module

PARTS = ("criterions", "models", "tasks")


def register() -> None:
    """Register task, models, architectures and criterions with fairseq, and let its checkpoints load safely.

    Parts that need fairseq call this when they are imported, so that it does not matter which a program imports.
    """
    import torch

    # fairseq's checkpoints hold flags in a Namespace, which PyTorch's safe loading refuses unless told it is harmless.
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([Namespace])
    for part in PARTS:
        import_module(f"taskmoe_plugin.{part}")
