"""Renaming files and directories under a condition, in one step, where the system can."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2  # of Linux's fcntl.h and fs.h
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names of one file system; nobody ever sees one of them missing.

    Returns:
        Whether it was done; False where the system or the file system cannot.

    Raises:
        OSError: it was refused.
    """
    return _rename(one, other, _RENAME_EXCHANGE)


def rename_new(path: Path, new: Path) -> bool:
    """Give something a name that nothing else has.

    Returns:
        Whether it was done; False where the system or the file system cannot.

    Raises:
        OSError: it was refused; FileExistsError: there is something of that name.
    """
    return _rename(path, new, _RENAME_NOREPLACE)


def _rename(one: Path, other: Path, flags: int) -> bool:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), flags) == 0:
        return True
    error = ctypes.get_errno()
    if error in _UNSUPPORTED:
        return False
    raise OSError(error, os.strerror(error), str(other))
