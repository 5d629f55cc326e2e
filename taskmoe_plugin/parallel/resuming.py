"""The checkpoint that a training run starts from, looked at before fairseq loads it."""

from __future__ import annotations

import logging
import os
import re
import shutil
from argparse import Namespace
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from fairseq.distributed import utils as distributed_utils
from torch import distributed as dist

from taskmoe_plugin.errors import TaskMoEError, UsageError
from taskmoe_plugin.files.loading import LoadError, MissingFile, TruncatedFile, load
from taskmoe_plugin.files.writing import new_file
from taskmoe_plugin.parallel.manifest import KEY, Manifest

LAST = "checkpoint_last.pt"
# What fairseq calls the checkpoints of a training, and the updates that some have in their name.
_WRITTEN = re.compile(r"checkpoint(?:\d+|_\d+_(?P<updates>\d+)|_best|\.best_.+)\.pt")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The checkpoint that a training run starts from.

    Attributes:
        name: what to call it in an error.
        args: the arguments of its model.
        task: the arguments of its task; none if it does not say.
    """

    name: str
    args: Namespace
    task: Namespace = field(default_factory=Namespace)

    @property
    def is_finetuned(self) -> bool:
        """Whether training begins anew with its weights, rather than going on."""
        return self.name.startswith("--finetune-from-model ")


def checkpoint_directories(args: Namespace) -> list[Path]:
    """Where a checkpoint that these flags name may be, and so the files of its experts."""
    names = [name for name in (getattr(args, "path", None) or "").split(":") if name]
    if getattr(args, "save_dir", None) and hasattr(args, "restore_file"):
        _, start = _named(args)
        names += [str(start)] if start else []
    names += [name for flag in ("finetune_from_model", "distill_from") if (name := getattr(args, flag, None))]
    places = [Path(name).absolute().parent for name in names]
    if getattr(args, "save_dir", None):
        places.append(Path(args.save_dir).absolute())
    return places


def check_start(args: Namespace) -> Start | None:
    """Look at the checkpoint that training goes on or starts from, if there is one.

    A run that is killed while fairseq copies a new checkpoint to ``checkpoint_last.pt`` leaves that cut short. The
    newest that training wrote takes its place, and it is kept under another name.

    Returns:
        The checkpoint; None if there is none.

    Raises:
        TaskMoEError: the checkpoint cannot be read, or cannot be continued with these flags.
    """
    if distributed_utils.get_data_parallel_world_size() == 1:
        return _check(args)
    group = distributed_utils.get_data_parallel_group()
    first = distributed_utils.get_rank(group) == 0
    start = _check(args) if first else None
    dist.barrier(group)
    # By now a file that was cut short has been replaced.
    return start if first else _check(args)


def _check(args: Namespace) -> Start | None:
    name, path = _named(args)
    if path is None:
        return None
    try:
        state = load(path)
    except MissingFile as error:
        raise UsageError(f"{name}: {error}; give a checkpoint that training wrote") from error
    except TruncatedFile as error:
        if args.restore_file != LAST or path != _last(args):
            raise TaskMoEError(error.of(name)) from error
        state = _replace(path, error, args)
    except LoadError as error:
        raise TaskMoEError(error.of(name)) from error
    trained = _trained(state, name)
    manifest = state["model"].get(KEY)
    if manifest is not None:
        Manifest.read(manifest, name)
    flat = args.fp16 and not (args.memory_efficient_fp16 or args.fp16_no_flatten_grads)
    if flat and manifest is not None and not args.reset_optimizer:
        raise UsageError(
            f"--fp16: {path} has the optimizer state of experts that were spread over processes, which flattened "
            "gradients cannot take up; add --fp16-no-flatten-grads, or --reset-optimizer"
        )
    _check_ema(args, state, name)
    found = Start(name, trained, _task(state))
    if not (found.is_finetuned or args.reset_dataloader):
        _warn_of_place(state, name)
    return found


def _check_ema(args: Namespace, state: Any, name: str) -> None:
    """Refuse to go on with averages that a checkpoint does not have: there fairseq fails."""
    if not getattr(args, "store_ema", False):
        return
    lacking = [] if "ema" in state["extra_state"] else [name]
    if seed := getattr(args, "ema_seed_model", None):
        try:
            lacking += [] if "ema" in load(Path(seed))["extra_state"] else [f"--ema-seed-model {seed}"]
        except LoadError as error:
            raise TaskMoEError(error.of(f"--ema-seed-model {seed}")) from error
        except (KeyError, TypeError):
            lacking.append(f"--ema-seed-model {seed}")
    if lacking:
        raise UsageError(
            f"--store-ema: {lacking[0]} has no averages of weights, with which fairseq would go on; leave it out, or "
            "give a checkpoint that was trained with it"
        )


def _warn_of_place(state: Any, name: str) -> None:
    """Say that in the middle of an epoch another number of processes goes on elsewhere in it."""
    now, cfg = distributed_utils.get_data_parallel_world_size(), state.get("cfg")
    part = cfg.get("distributed_training") if isinstance(cfg, dict) else None
    before = part.get("distributed_world_size") if isinstance(part, dict) else None
    place = state["extra_state"].get("train_iterator")
    batches = place.get("iterations_in_epoch", 0) if isinstance(place, dict) else 0
    if isinstance(before, int) and before != now and batches and distributed_utils.get_global_rank() == 0:
        logger.warning(
            f"{name} was saved by {before} processes after {batches} batches of an epoch, and {now} go on: the rest of "
            "the epoch is not what is left of its text; to begin the epoch anew, give --reset-dataloader"
        )


def _named(args: Namespace) -> tuple[str, Path | None]:
    """The checkpoint that fairseq will load, and what to call it."""
    if args.restore_file != LAST:
        return f"--restore-file {args.restore_file}", _with_suffix(Path(args.restore_file), args)
    last = _last(args)
    if os.path.lexists(last):
        return str(last), last
    for flag in ("continue_once", "finetune_from_model"):
        if path := getattr(args, flag, None):
            return f"--{flag.replace('_', '-')} {path}", Path(path)
    return "", None


def _last(args: Namespace) -> Path:
    """The checkpoint that fairseq leaves at every save."""
    return _with_suffix(Path(args.save_dir, LAST), args)


def _with_suffix(path: Path, args: Namespace) -> Path:
    """Where fairseq reads or writes a checkpoint with ``--checkpoint-suffix``."""
    return path.with_name(path.name.replace(".pt", f"{_suffix(args)}.pt"))


def _suffix(args: Namespace) -> str:
    return getattr(args, "checkpoint_suffix", None) or ""


def _trained(state: Any, name: str) -> Namespace:
    """The arguments of a checkpoint's model, or an error if training did not write it."""
    parts = (("model", dict), ("optimizer_history", list), ("extra_state", dict))
    if not isinstance(state, dict) or not all(
        isinstance(state.get(part), kind) and state[part] for part, kind in parts
    ):
        raise TaskMoEError(f"{name}: no checkpoint that training wrote, which has {', '.join(dict(parts))}; give one")
    cfg = state.get("cfg")
    args = cfg.get("model") if isinstance(cfg, dict) else state.get("args")
    # Those of a subnet for stock fairseq are a dictionary.
    args = Namespace(**args) if isinstance(args, dict) else args
    if not isinstance(args, Namespace):
        raise TaskMoEError(f"{name}: does not say what flags its model has; give a checkpoint that training wrote")
    return args


def _task(state: Any) -> Namespace:
    cfg = state.get("cfg")
    task = cfg.get("task") if isinstance(cfg, dict) else None
    return task if isinstance(task, Namespace) else Namespace()


def _replace(broken: Path, reason: TruncatedFile, args: Namespace) -> Any:
    """Put the newest checkpoint that training wrote in the place of one that is cut short; returns what is in it."""
    found: dict[int, tuple[Path, Any]] = {}
    for path in sorted(broken.parent.iterdir()):
        suffix = f"{_suffix(args)}.pt"
        name = _WRITTEN.fullmatch(path.name.removesuffix(suffix) + ".pt") if path.name.endswith(suffix) else None
        try:
            state = load(path) if name else None
        except (MissingFile, TruncatedFile):
            continue
        except LoadError as error:
            # It may be the newest.
            raise TaskMoEError(f"{error.of(path)}, or move it away ({broken} is {reason})") from error
        updates = _updates(state, args.no_save_optimizer_state)
        if name and updates is not None and name["updates"] in (None, str(updates)):
            found.setdefault(updates, (path, state))
    if not found:
        raise TaskMoEError(
            f"{broken}: {reason}, and beside it is no other checkpoint that training wrote; move it away to start again"
        )
    path, state = found[max(found)]
    kept = _free(broken)
    with new_file(broken, str(broken)) as temporary:
        shutil.copyfile(path, temporary)
        try:
            os.link(broken, kept)
        except OSError:  # there are file systems without
            shutil.copyfile(broken, kept)
    logger.warning(f"{broken} is cut short, and kept as {kept}; going on from {path}, of {max(found)} updates")
    return state


def _updates(state: Any, without_optimizer: bool) -> int | None:
    """How many updates made a checkpoint; None if training did not write it, as where it was averaged."""
    try:
        updates = state["optimizer_history"][-1]["num_updates"]
        whole = isinstance(state["extra_state"]["train_iterator"], dict) and isinstance(state["model"], dict)
        optimizer = without_optimizer or isinstance(state["last_optimizer_state"], dict)
    except (IndexError, KeyError, TypeError):
        return None
    return updates if type(updates) is int and whole and optimizer else None


def _free(path: Path) -> Path:
    """A name beside a file that is not taken, and is none of a checkpoint."""
    names = (path.with_name(f"{path.name}.cut-{number}") for number in count(1))
    return next(name for name in names if not os.path.lexists(name))
