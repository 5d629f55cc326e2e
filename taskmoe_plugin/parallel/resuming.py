"""The checkpoint that a training run starts from, looked at before fairseq loads it."""

from __future__ import annotations

import logging
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

from fairseq.distributed import utils as distributed_utils
from torch import distributed as dist

from taskmoe_plugin.errors import TaskMoEError, UsageError
from taskmoe_plugin.parallel.shards import KEY, load_mapped

LAST = "checkpoint_last.pt"
logger = logging.getLogger(__name__)


def checkpoint_directories(args: Namespace) -> list[Path]:
    """Where a checkpoint that these flags name may be, and so the files of its experts."""
    names = [name for name in (getattr(args, "path", None) or "").split(":") if name]
    names += [name for flag in ("restore_file", "finetune_from_model") if (name := getattr(args, flag, None))]
    places = [Path(name).absolute().parent for name in names]
    if getattr(args, "save_dir", None):
        places.append(Path(args.save_dir).absolute())
    return places


def check_restore_file(args: Namespace) -> Any:
    """Look at the checkpoint that training goes on or starts from, if there is one.

    A run that is killed while fairseq copies a new checkpoint to ``checkpoint_last.pt`` leaves that cut short. The file
    that it was copied from is complete, and takes its place.

    Returns:
        The arguments of the checkpoint's model; None if there is no checkpoint.

    Raises:
        TaskMoEError: the checkpoint cannot be read, or cannot be continued with these flags.
    """
    if distributed_utils.get_data_parallel_world_size() == 1:
        return _check(args)
    group = distributed_utils.get_data_parallel_group()
    first = distributed_utils.get_rank(group) == 0
    trained = _check(args) if first else None
    dist.barrier(group)
    # By now a file that was cut short has been replaced.
    return trained if first else _check(args)


def _check(args: Namespace) -> Any:
    path = Path(args.save_dir) / LAST if args.restore_file == LAST else Path(args.restore_file)
    if not path.is_file():
        return _check_finetuned(args.finetune_from_model) if args.finetune_from_model else None
    try:
        state = load_mapped(path)
    except ValueError as error:
        if args.restore_file != LAST:
            raise TaskMoEError(f"{path}: {error}; give another --restore-file") from error
        state = _replace(path)
    flat = args.fp16 and not (args.memory_efficient_fp16 or args.fp16_no_flatten_grads)
    if flat and KEY in state["model"] and not args.reset_optimizer:
        raise UsageError(
            f"--fp16: {path} has the optimizer state of experts that were spread over processes, which flattened "
            "gradients cannot take up; add --fp16-no-flatten-grads, or --reset-optimizer"
        )
    return _model_args(state)


def _check_finetuned(path: str) -> Any:
    if not Path(path).is_file():
        raise UsageError(f"--finetune-from-model {path}: no such file; give a checkpoint")
    try:
        return _model_args(load_mapped(Path(path)))
    except ValueError as error:
        raise TaskMoEError(
            f"--finetune-from-model {path}: {error}; give another checkpoint, of PyTorch 1.6 or later"
        ) from error


def _model_args(state: Any) -> Any:
    return (state.get("cfg") or {}).get("model")


def _replace(broken: Path) -> Any:
    found: tuple[int, Path, Any] | None = None
    for path in broken.parent.glob("checkpoint*.pt"):
        try:
            state = load_mapped(path)
            updates = state["optimizer_history"][-1]["num_updates"]
        except (ValueError, KeyError, TypeError):
            continue
        if found is None or updates > found[0]:
            found = (updates, path, state)
    if found is None:
        raise TaskMoEError(
            f"{broken}: truncated or corrupted, and there is no other checkpoint; remove it to start again"
        )
    updates, path, state = found
    logger.warning(f"{broken} is cut short; going on from {path}, of {updates} updates")
    temporary = broken.with_name(broken.name + ".tmp")
    shutil.copyfile(path, temporary)
    temporary.replace(broken)
    return state
