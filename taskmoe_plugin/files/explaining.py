"""Why one of fairseq's commands could not load a checkpoint: fairseq lets PyTorch's error through, without the name."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.files.loading import LoadError, load

_MODULE = "fairseq.checkpoint_utils"
# The functions that load, and their variables that have the name of the file.
_FUNCTIONS = {"load_checkpoint_to_cpu": "path", "load_model_ensemble_and_task": "filename"}


def explain(error: BaseException) -> TaskMoEError | None:
    """What is wrong with the checkpoint that fairseq was loading; None if it was doing something else.

    Args:
        error: what ends the process.
    """
    path = _loading(error.__traceback__)
    if path is None:
        return None
    try:
        load(Path(path))
    except LoadError as reason:
        return TaskMoEError(f"{path}: {reason}; {reason.remedy}")
    return TaskMoEError(f"{path}: no checkpoint that fairseq can use; give one that training wrote")


def _loading(trace: TracebackType | None) -> str | None:
    """The file that the innermost of fairseq's functions was loading, if the error is not of a model or a task."""
    found = None
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_globals.get("__name__") == _MODULE and frame.f_code.co_name in _FUNCTIONS:
            found = frame.f_locals.get(_FUNCTIONS[frame.f_code.co_name])
        elif frame.f_globals.get("__name__", "").startswith(("fairseq.models", "fairseq.tasks", "taskmoe_plugin")):
            found = None
        trace = trace.tb_next
    return found
