"""Checkpoints of small models that were never trained."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from tests.helpers.models import LANGS, PAIRS, build_model_of, kept, model_args, net_input, rows

SHARED = {"share_all_embeddings": True, "encoder_normalize_before": True}


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


def stock_task(**changes: Any) -> Namespace:
    """The task's flags of a checkpoint of stock fairseq."""
    flags = {
        "task": "translation_multi_simple_epoch", "langs": list(LANGS), "lang_pairs": list(PAIRS),
        "extra_lang_pairs": None, "encoder_langtok": "tgt", "decoder_langtok": True, "langtoks_specs": ["main"],
        "lang_tok_style": "multilingual", "lang_tok_replacing_bos_eos": False, "left_pad_source": "True",
        "left_pad_target": "False", "langtoks": {"main": ("tgt", "tgt")}, "lang_dict": None,
    }  # fmt: skip
    return Namespace(**{**flags, **changes})


def write_dense(path: Path, task: Namespace | None = None, arch: str = "transformer", **flags: Any) -> Path:
    """A dense checkpoint."""
    args = model_args(arch, **{**SHARED, **flags})
    changes = {"cfg": {"model": args, "task": task or stock_task(), "criterion": None}}
    return write_checkpoint(path, args, **changes)


def assert_same_function(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Two models in evaluation have the same logits, on a batch of all pairs and on one of a single pair."""
    for batch in (net_input(rows(10)), net_input(rows(3, pairs=PAIRS[:1]))):
        plain = {name: each for name, each in batch.items() if "lang" not in name}
        logits = [torch.cat(kept(model(**each)[0], batch)) for model, each in ((found, batch), (expected, plain))]
        torch.testing.assert_close(*logits, atol=tolerance, rtol=tolerance)
