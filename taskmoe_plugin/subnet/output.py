"""Where a subnet is written to."""

from __future__ import annotations

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
