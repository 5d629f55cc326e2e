"""Checkpoints of small models that were never trained."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from tests.helpers.models import LANGS, PAIRS, build_model_of


def write_checkpoint(path: Path, model: Namespace, **changes: Any) -> Path:
    """What fairseq-train writes of a model, as far as conversions look at it.

    Args:
        path: the file.
        model: its arguments, of ``model_args``.
        changes: to the checkpoint.
    """
    task = Namespace(task="taskmoe_translation", langs=list(LANGS), lang_pairs=list(PAIRS))
    state = {
        "args": None,
        "cfg": {"model": model, "task": task, "criterion": None},
        "model": build_model_of(model).state_dict(),
        "optimizer_history": [{"criterion_name": "TaskMoELabelSmoothedCrossEntropyCriterion", "num_updates": 7}],
        "extra_state": {"train_iterator": {"epoch": 2}, "ema": {"decoder.version": torch.ones(1)}},
        "last_optimizer_state": {"state": {}, "param_groups": []},
        **changes,
    }
    torch.save(state, path)
    return path


def load(path: Path) -> Any:
    """What a checkpoint holds, read the safe way."""
    return torch.load(path, map_location="cpu", weights_only=True)
