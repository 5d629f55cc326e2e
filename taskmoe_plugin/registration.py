"""Making fairseq know of what the package adds to it."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

FAIRSEQ = "fairseq"
PARTS = ("criterions", "models", "optim", "tasks")


def register_with_fairseq() -> None:
    """Register task, models, criterions and optimizers with fairseq: now, or as soon as a program imports it.

    fairseq's ``--user-dir`` imports a package only if no one has before: it does not help one that was imported first.
    """
    if sys.modules.get(FAIRSEQ):
        _register()
    else:
        sys.meta_path.insert(0, _AfterFairseq())


def _register() -> None:
    import torch

    # fairseq's checkpoints hold flags in a Namespace, which PyTorch's safe loading refuses unless told it is harmless.
    torch.serialization.add_safe_globals([Namespace])
    # With this variable fairseq would run whatever a checkpoint brings along. PyTorch looks at it anew for every file.
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    for part in PARTS:
        import_module(f"taskmoe_plugin.{part}")


class _AfterFairseq(MetaPathFinder):
    """Finds fairseq where the others do, and registers once it is imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != FAIRSEQ:
            return None
        others = (each for each in sys.meta_path if each is not self)
        spec = next(filter(None, (each.find_spec(name, path, target) for each in others)), None)
        if spec is not None and spec.loader is not None:
            _register_after(spec.loader)
        return spec


def _register_after(loader: Any) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        _register()

    loader.exec_module = exec_module
