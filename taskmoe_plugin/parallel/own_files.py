"""Files of experts that a run has written, and removes when fairseq removes their checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.files.loading import LoadError, MissingFile, TruncatedFile, is_archive, load
from taskmoe_plugin.files.locking import visible
from taskmoe_plugin.parallel.manifest import KEY

Identity = tuple[int, int, int]
logger = logging.getLogger(__name__)


class OwnFiles:
    """The files of experts that this run has written to a directory, and that its checkpoints there need.

    fairseq replaces and removes checkpoints while it saves, and at no other time. Where one is gone at another time, a
    user has renamed or moved it: its files are no longer this run's to remove. Those of other runs never are.

    Args:
        directory: where checkpoints are saved.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # The files of each save, with the checkpoints that name them.
        self._saves: dict[tuple[str, ...], dict[Path, Identity]] = {}
        self._last: tuple[str, ...] | None = None  # of a save after which fairseq has written no checkpoint yet
        self._warned = False
        # What the checkpoints that have been read name: a run may keep hundreds.
        self._read: dict[tuple[Path, Identity | None], tuple[str, ...]] = {}

    def before_save(self) -> None:
        """Leave to users the files of checkpoints that fairseq has not removed, but that are gone.

        Those of a save for which it has written no checkpoint are removed.
        """
        if self._last is not None:
            self._remove(self._last)
            self._last = None
        self._saves = {
            files: checkpoints
            for files, checkpoints in self._saves.items()
            if all(_identity(path) == identity for path, identity in checkpoints.items())
        }

    def add(self, files: Sequence[str]) -> None:
        """Add those of a new save, whose checkpoint is yet to be written."""
        self._last = tuple(files)
        self._saves[self._last] = {}

    def remove_unused(self) -> None:
        """After a save, remove files that no checkpoint needs. Where one cannot be read, nothing is removed."""
        self._last = None
        try:
            found = list(self._checkpoints())
        except TaskMoEError as error:
            if not self._warned:
                logger.warning(f"{error}, or move it away: until then all files of experts stay, which it may need")
            self._warned = True
            return
        for files in list(self._saves):
            self._saves[files] = {path: identity for path, identity, named in found if named == files}
            if not self._saves[files]:
                self._remove(files)

    def _remove(self, files: tuple[str, ...]) -> None:
        for file in files:
            (self._directory / file).unlink(missing_ok=True)
        del self._saves[files]

    def _checkpoints(self) -> Iterator[tuple[Path, Identity, tuple[str, ...]]]:
        """The checkpoints in the directory, whatever they are called, that name files of experts."""
        for path in visible(self._directory):
            if not is_archive(path):
                continue
            identity = _identity(path)
            try:
                if (path, identity) not in self._read:
                    self._read[path, identity] = _named_files(load(path))
            except (MissingFile, TruncatedFile):  # what is cut short was left by a run that was killed
                continue
            except LoadError as error:
                raise TaskMoEError(error.of(path)) from error
            files = self._read[path, identity]
            if files and identity is not None:
                yield path, identity, files


def _named_files(content: Any) -> tuple[str, ...]:
    """The files of experts that a checkpoint names, if it is one, and names any."""
    for key in ("model", KEY, "files"):
        content = content.get(key) if isinstance(content, dict) else None
    return tuple(content) if isinstance(content, list) else ()


def _identity(path: Path) -> Identity | None:
    """What changes when a file is replaced or written to; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
