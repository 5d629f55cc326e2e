"""Writing files and directories that appear complete or not at all.

Each is written under a temporary name beside its place, which is locked as long as its writer lives. What a writer that
was killed has left is removed by the next one that writes to the same place.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.files.renaming import exchange, rename_new

_NAME = 50  # characters of the name in the temporary one, which must not become too long
_TOKEN = 8  # characters


@contextmanager
def new_file(path: Path, name: str, replace: bool = True) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the block ends well, else vanishes.

    Args:
        path: the file.
        name: what to call it in an error, a path or a flag and its value.
        replace: whether it takes the place of one that is there by then.

    Raises:
        TaskMoEError: it cannot be written.
    """
    with _reporting(name), _temporary(path, directory=False) as temporary:
        yield temporary
        _sync(temporary)
        if replace:
            temporary.replace(path)
        else:
            _rename_new(temporary, path, name)


@contextmanager
def new_directory(path: Path, name: str, replace: bool = True) -> Iterator[Path]:
    """A temporary directory beside ``path`` that takes its place when the block ends well, else vanishes.

    A directory that was there is removed after the exchange; of a link to one, the link alone. Where the file system
    cannot exchange two names in one step, it is kept under another name, and a line on standard error says so.

    Args:
        path: the directory.
        name: what to call it in an error, a path or a flag and its value.
        replace: whether it takes the place of one that is there by then, and not empty.

    Raises:
        TaskMoEError: it cannot be written.
    """
    with _reporting(name), _temporary(path, directory=True) as temporary:
        yield temporary
        for file in filter(Path.is_file, temporary.rglob("*")):
            _sync(file)
        if not replace:
            _rename_new(temporary, path, name)
        elif not path.exists():
            temporary.rename(path)
        elif not exchange(temporary, path):
            _keep_both(temporary, path)


@contextmanager
def new_files(directory: Path, names: Sequence[str], name: str) -> Iterator[Path]:
    """A temporary directory whose files take their places in ``directory`` when the block ends well, else vanish.

    Args:
        directory: made if need be; what else is in it stays.
        names: the names of all files that there may be; those that are not there afterwards are removed.
        name: what to call it in an error, a path or a flag and its value.

    Raises:
        TaskMoEError: they cannot be written.
    """
    with _reporting(name):
        directory.mkdir(parents=True, exist_ok=True)
        with _temporary(directory / names[0], directory=True) as temporary:
            yield temporary
            for each in names:
                if (temporary / each).exists():
                    _sync(temporary / each)
                    (temporary / each).replace(directory / each)
                else:
                    (directory / each).unlink(missing_ok=True)


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside ``path``, for what is needed to make it; it vanishes when the block ends."""
    with _temporary(path, directory=True) as temporary:
        yield temporary


def remove_leftovers(directory: Path) -> None:
    """Remove temporary files and directories that writers to a directory left when they were killed."""
    _remove_unlocked(directory, "*")


def save(state: Any, path: Path) -> None:
    """``torch.save``, but what goes wrong comes as itself.

    Raises:
        OSError: the file cannot be written.
        KeyboardInterrupt: the user has interrupted it.
    """
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        raise cause_of(error) from None


def cause_of(error: BaseException) -> BaseException:
    """What made ``torch.save`` fail: it goes on to complain of the half-written file."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (OSError, KeyboardInterrupt)):
            return cause
        cause = cause.__context__
    return error


@contextmanager
def _reporting(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = name if len(name) < 300 else f"{name[:100]}…{name[-100:]}"
        raise TaskMoEError(
            f"{where}: cannot be written ({error.strerror or error}); nothing was kept of it, make room or give "
            "another place"
        ) from error


@contextmanager
def _temporary(path: Path, directory: bool) -> Iterator[Path]:
    """A new empty file or directory beside ``path`` that no other process touches; removed at the end."""
    if directory:
        path.parent.mkdir(parents=True, exist_ok=True)
    _remove_unlocked(path.parent, glob.escape(path.name[:_NAME]))
    temporary, lock = _make(path, directory)
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(lock)


def _make(path: Path, directory: bool) -> tuple[Path, int]:
    while True:
        temporary = path.with_name(f".{path.name[:_NAME]}.{secrets.token_hex(_TOKEN // 2)}.tmp")
        if directory:
            temporary.mkdir()
        else:
            temporary.touch(exist_ok=False)
        lock = _lock(temporary, own=True)
        if lock is not None:
            return temporary, lock


def _remove_unlocked(directory: Path, name: str) -> None:
    for left in directory.glob(f".{name}.{'[0-9a-f]' * _TOKEN}.tmp"):
        lock = _lock(left)
        if lock is not None:
            _remove(left)
            os.close(lock)


def _lock(path: Path, own: bool = False) -> int | None:
    """Lock a file or directory for as long as this process lives.

    Returns:
        What to close in the end; None if another process has locked or removed it. Where the file system has no locks,
        only what this process has made itself passes for locked.
    """
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            if not own:
                raise
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except OSError:
        pass
    if descriptor is not None:
        os.close(descriptor)
    return None


def _remove(path: Path) -> None:
    # Of a link only the link.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _rename_new(temporary: Path, path: Path, name: str) -> None:
    """Rename where nothing is, or an empty directory, in one step: another process may write to the same place."""
    try:
        if path.is_symlink() and path.is_dir() and not any(path.iterdir()):
            path.unlink()
        # Onto a directory that has something in it the system renames none, but it would replace a file.
        if temporary.is_dir() or not rename_new(temporary, path):
            temporary.rename(path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise TaskMoEError(
            f"{name}: another process has written it in the meantime; give --force to replace it, or another place"
        ) from error


def _keep_both(temporary: Path, path: Path) -> None:
    kept = path.with_name(f"{path.name[:_NAME]}.old-{secrets.token_hex(_TOKEN // 2)}")
    path.rename(kept)
    temporary.rename(path)
    print(f"taskmoe: {path}: what was there before is now {kept}; remove it if you do not need it", file=sys.stderr)
