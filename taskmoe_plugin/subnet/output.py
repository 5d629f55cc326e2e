"""Directories that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskmoe_plugin.errors import TaskMoEError


def check_free(directory: Path, force: bool) -> None:
    """Refuse to write where something is.

    Args:
        directory: where something is going to be written.
        force: whether a directory may be replaced.

    Raises:
        TaskMoEError: it is a file, or holds files and may not be replaced.
    """
    if directory.is_dir():
        if not force and any(directory.iterdir()):
            raise TaskMoEError(
                f"{directory}: exists and is not empty; give --force to replace it, or another --output-dir"
            )
    elif directory.exists() or directory.is_symlink():
        raise TaskMoEError(f"{directory}: exists and is no directory; give another --output-dir")


@contextmanager
def new_directory(directory: Path, force: bool) -> Iterator[Path]:
    """A temporary directory beside ``directory`` that takes its place when the block ends well, else vanishes.

    Raises:
        TaskMoEError: see ``check_free``; or the disk is full or refuses to be written to.
    """
    check_free(directory, force)
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _replace(directory, temporary)
    except OSError as error:
        raise TaskMoEError(
            f"{directory}: cannot be written ({error.strerror or error}); nothing was kept of it"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(directory: Path, new: Path) -> None:
    old = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    if directory.is_dir():
        directory.rename(old)
    try:
        new.rename(directory)
    except BaseException:
        if old.is_dir():
            old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)
