"""A directory that one process at a time writes to."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from taskmoe_plugin.errors import TaskMoEError

NAME = ".training"


def visible(directory: Path) -> list[Path]:
    """What is in a directory but hidden files: a process that opens and closes the one of its lock loses the lock."""
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))


def lock_directory(directory: Path, flag: str) -> IO[bytes]:
    """Lock a directory against other processes, here and on other machines that share the disk.

    The lock ends with the process, however that ends, or when the returned file is closed. It is one of ``lockf``, as
    forked processes do not inherit these.

    Args:
        directory: where it is; a file in it, ``.training``, carries the lock.
        flag: how the user has named it.

    Raises:
        TaskMoEError: another process has locked it, or it cannot be written to.
    """
    try:
        file = (directory / NAME).open("ab")
    except OSError as error:
        raise TaskMoEError(f"{flag}: cannot be written ({error.strerror}); give another directory") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise TaskMoEError(
            f"{flag}: another training is writing to it; wait for it, stop it, or give another directory"
        ) from None
    except OSError:
        # The file system has no locks. Training goes on as it would without.
        pass
    return file
