"""Why one of fairseq's commands could not load a checkpoint: fairseq lets errors through that do not name the file."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from types import TracebackType

import torch
from fairseq import utils

from taskmoe_plugin.errors import TaskMoEError, UsageError
from taskmoe_plugin.files.loading import LoadError, load

# The functions that load, and their variables that have the name of the file.
_LOADING = {
    ("fairseq.checkpoint_utils", "load_checkpoint_to_cpu"): "path",
    ("fairseq.checkpoint_utils", "load_model_ensemble_and_task"): "filename",
    ("fairseq.trainer", "load_checkpoint"): "filename",
}
# Where an error is not of the file, unless it is in a function that takes up what the file holds.
_OTHERS = ("fairseq.models", "fairseq.tasks", "fairseq.optim", "taskmoe_plugin")
_TAKING_UP = "load_state_dict"
_MISFITS = re.compile(r"Error\(s\) in loading state_dict for \w+:\s*([^\n]+)")


def explain(error: BaseException) -> TaskMoEError | None:
    """What is wrong with the checkpoint that fairseq was loading, or had loaded; None if that is not the reason.

    Args:
        error: what ends the process.
    """
    if not isinstance(error, Exception) or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return None
    path, of_file = _loading(error.__traceback__)
    if path is None:
        return _damage()
    misfit = _MISFITS.match(str(error)) or _MISFITS.match(str(error.__context__))
    if misfit:
        return UsageError(f"{path}: its weights do not fit the model ({misfit[1]}); give one of the same flags")
    if not of_file:
        return _damage()
    if isinstance(error, AssertionError) and str(error):
        # fairseq compares optimizer and criterion, and says which flag helps.
        return UsageError(f"{path}: {str(error)[:1].lower()}{str(error)[1:]}")
    return _reason(path) or TaskMoEError(f"{path}: no checkpoint that fairseq can use; give one that training wrote")


def _damage() -> TaskMoEError | None:
    """What is wrong with a model that the command names: fairseq takes up flags that a flipped bit has changed."""
    words = [word for each in sys.argv for word in (each.split("=", 1) if each.startswith("--path=") else [each])]
    named = [value for flag, value in itertools.pairwise(words) if flag == "--path"]
    return next(filter(None, (_reason(path) for each in named for path in utils.split_paths(each))), None)


def _reason(path: str) -> TaskMoEError | None:
    try:
        load(Path(path))
    except LoadError as reason:
        return TaskMoEError(reason.of(path))
    return None


def _loading(trace: TracebackType | None) -> tuple[str | None, bool]:
    """The file that fairseq was loading, and whether nothing else had begun since."""
    path, of_file = None, False
    while trace is not None:
        frame = trace.tb_frame
        module = frame.f_globals.get("__name__", "")
        variable = _LOADING.get((module, frame.f_code.co_name))
        if variable is not None:
            path, of_file = frame.f_locals.get(variable), True
        elif module.startswith(_OTHERS):
            of_file = path is not None and module.startswith("fairseq.optim") and frame.f_code.co_name == _TAKING_UP
        trace = trace.tb_next
    return path, of_file
