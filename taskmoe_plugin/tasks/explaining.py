"""Why one of fairseq's commands ended: it lets errors through that do not name the flag, or not the cause."""

from __future__ import annotations

import errno
import os
import re
from types import TracebackType

from hydra.errors import ConfigCompositionException

from taskmoe_plugin.errors import TaskMoEError, UsageError

_OPEN = re.compile(r"Error merging override \w+\.(\w+)=null")
# What a path can be wrong about. Others, such as a disk that fails, are not of a flag.
_OF_PATHS = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EROFS, errno.ENAMETOOLONG}


def explain_flag(error: BaseException) -> TaskMoEError | None:
    """What is wrong with a flag's value, or the path that it names; None if it is something else.

    Args:
        error: what ends the process.
    """
    value = _value_that_is_read(error.__traceback__)
    if value is not None:
        flag, text = value
        return UsageError(f"{flag} {text}: cannot be read ({error}); see fairseq-train --help for how it is written")
    if isinstance(error, RuntimeError) and "dataloader mismatch" in str(error):
        return UsageError(
            "the checkpoint was saved after more batches than an epoch has now, with fewer processes or other sizes of "
            "batches; give --reset-dataloader to begin the epoch anew, or go on as before"
        )
    unset = _OPEN.search(str(error))
    if isinstance(error, ConfigCompositionException) and unset:
        return UsageError(f"--{unset[1].replace('_', '-')}: needs a value with these flags; give it")
    if isinstance(error, OSError) and isinstance(error.filename, (str, bytes)) and error.errno in _OF_PATHS:
        return TaskMoEError(f"{os.fsdecode(error.filename)}: {error.strerror}; give a path that can be used")
    return None


def explain_divergence(error: BaseException) -> TaskMoEError | None:
    """That gradients are not finite; None if it is something else.

    fairseq then does the update again with hooks on every module, to find the first one that has such values, and fails
    at that with recent versions of PyTorch.

    Args:
        error: what ends the process.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, FloatingPointError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    trace, begun = cause.__traceback__, ""
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_globals.get("__name__") == "fairseq.trainer" and "self" in frame.f_locals:
            flags = frame.f_locals["self"].cfg.checkpoint
            path = flags.finetune_from_model or flags.restore_file
            begun = f", or another checkpoint than {path} if it began with that"
        trace = trace.tb_next
    return TaskMoEError(f"{cause}: training has diverged; give a lower --lr{begun}")


def _value_that_is_read(trace: TracebackType | None) -> tuple[str, str] | None:
    """The flag and its value that argparse was reading."""
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_globals.get("__name__") == "argparse" and frame.f_code.co_name == "_get_value":
            action = frame.f_locals["action"]
            return (action.option_strings or [action.dest])[-1], frame.f_locals["arg_string"]
        trace = trace.tb_next
    return None
