"""The flags of a dense model, made those of one with experts."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from taskmoe_plugin.convert.source import Source
from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.models.config import check_args, remember_languages, set_moe_defaults
from taskmoe_plugin.models.loading import MODEL
from taskmoe_plugin.tasks.remembered_flags import remember_stock_flags

STOCK_TASK = "translation_multi_simple_epoch"


def sparse_cfg(source: Source, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a dense model as a ``taskmoe_transformer``.

    Args:
        source: the dense model.
        flags: the new model's, as attributes; those that are left out have their defaults.

    Raises:
        TaskMoEError: the model knows no languages, or has low-rank matrices.
        UsageError: the flags cannot work.
    """
    cfg = source.cfg
    args: Namespace = cfg["model"]
    task: Namespace = cfg["task"]
    # Of fairseq's tasks that have a dataclass, configurations have the name alone.
    name = getattr(task, "task", None) or getattr(task, "_name", None)
    if name not in (STOCK_TASK, "taskmoe_translation"):
        raise TaskMoEError(
            f"{source.path}: was trained with --task {name}, whose dictionaries have no languages; give a model "
            f"of --task {STOCK_TASK}"
        )
    if getattr(args, "task_low_rank", 0):
        raise TaskMoEError(f"{source.path}: has low-rank matrices, which experts cannot take over; give a dense model")
    remember_stock_flags(task)
    # Of a dense model that was trained with this plugin.
    for name in [name for name in vars(args) if name.startswith(("moe_", "taskmoe_")) or "_moe_" in name]:
        delattr(args, name)
    vars(args).update(flags)
    args.arch = args._name = MODEL
    args.user_dir = None
    set_moe_defaults(args)
    check_args(args)
    remember_languages(args, task.langs, _pairs(task))
    return cfg


def _pairs(task: Namespace) -> list[str]:
    extra = {pair for pairs in (task.extra_lang_pairs or {}).values() for pair in pairs.split(",")}
    pairs = task.lang_pairs.split(",") if isinstance(task.lang_pairs, str) else list(task.lang_pairs)
    return [*pairs, *sorted(extra - set(pairs))]
