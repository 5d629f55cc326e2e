"""Reading what ``torch.save`` wrote: never more than tensors and plain values, and with a reason where that fails."""

from __future__ import annotations

import errno
import os
import pickle
import re
import zipfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

_ZIP, _END_OF_ZIP, _END_SIZE = b"PK\x03\x04", b"PK\x05\x06", 22
# What PyTorch says of a class or function that it does not allow, in its several versions.
_REFUSAL = re.compile(
    r"[Uu]nsupported (?:global|GLOBAL|class)[^\n]*?([\w.]+\.[\w.]+)|"
    r"call reduce for unrecognized function ([^\n]+)|Can only (?:build|create new object)[^\n]+"
)

_REASON = re.compile(r"WeightsUnpickler error:\s*(.*?)\s*(?:Check the documentation|$)", re.DOTALL)


class LoadError(ValueError):
    """A file that cannot be loaded. Its text says why, to be put after the file's name.

    Attributes:
        remedy: what a user can do.
    """

    remedy = "give another"

    def of(self, name: object) -> str:
        """One line that names the file, or the flag and the file, what is wrong with it, and what to do."""
        return f"{name}: {self}; {self.remedy}"


class MissingFile(LoadError):
    """There is no such file."""

    remedy = "give one that is there"


class UnreadableFile(LoadError):
    """The system refuses to read it: permission, a disk's error, a directory."""

    remedy = "see that it can be read, and try again"


class RefusedFile(LoadError):
    """It holds Python objects other than tensors and plain values, which safe loading refuses."""

    remedy = "give one with nothing added"


class TruncatedFile(LoadError):
    """It provably lacks its end, as what is written in a crash does."""

    remedy = "copy it again"


class DamagedFile(LoadError):
    """It is not what ``torch.save`` wrote, for whatever reason."""

    remedy = "copy it again"


def load(path: Path) -> Any:
    """What is in a file of ``torch.save``; the tensors stay on disk, mapped.

    Whatever ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`` says, nothing but tensors, plain values and allowed classes is made.

    Raises:
        LoadError: it cannot be loaded; the subclass says for what kind of reason.
    """
    complete = _look(path)
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        raise UnreadableFile("has a name that is no UTF-8, which PyTorch cannot open") from None
    try:
        _check_sums(path)
        with _exact_offsets():
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # damaged pickles raise almost anything
        raise _diagnose(error, complete) from error


def is_archive(path: Path) -> bool:
    """Whether a file begins like those of ``torch.save``, whole or not.

    Raises:
        UnreadableFile: the system refuses to read it.
    """
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_ZIP)) == _ZIP
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unreadable(error) from error


def _check_sums(path: Path) -> None:
    """Check the sums of all but the tensors, which PyTorch does not, so that no flag is another by a flipped bit."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            # Zero: written by who has turned sums off (torch.serialization.set_crc32_options).
            if member.CRC and "/data/" not in member.filename:
                archive.read(member)


def _exact_offsets() -> AbstractContextManager[Any]:
    """Within the context PyTorch computes where tensors are in a file, rather than look each of them up in it."""
    try:
        from torch.utils.serialization import config
    except ImportError:  # before PyTorch 2.7
        return nullcontext()
    return config.patch({"load.calculate_storage_offsets": True})  # type: ignore[no-any-return, attr-defined]


def _look(path: Path) -> bool:
    """Whether a file has the end of a zip archive, as far as it can be read at all."""
    try:
        # Others may have no end, or wait for somebody to write to them.
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UnreadableFile("is no regular file")
        with path.open("rb") as file:
            start = file.read(len(_ZIP))
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END_SIZE))
            end = file.read(_END_SIZE)
    except OSError as error:
        raise _unreadable(error) from error
    if not start.startswith(_ZIP[: max(1, len(start))]) and start:
        raise DamagedFile("is no PyTorch checkpoint")
    return end.startswith(_END_OF_ZIP)


def _unreadable(error: OSError) -> LoadError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return MissingFile("no such file")
    return UnreadableFile(f"cannot be read ({error.strerror or error})")


def _diagnose(error: Exception, complete: bool) -> LoadError:
    if not complete:
        return TruncatedFile("truncated: its end is missing")
    # Offsets that lead nowhere are invalid arguments.
    if isinstance(error, OSError) and error.errno != errno.EINVAL:
        return _unreadable(error)
    refused = _REFUSAL.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if refused:
        name = next(filter(None, refused.groups()), "")
        return RefusedFile(f"holds Python objects that safe loading refuses{f' ({name})' if name else ''}")
    # PyTorch puts advice for developers around the reason.
    reason = _REASON.search(str(error))
    return DamagedFile(f"damaged ({_short(reason[1] if reason else str(error)) or type(error).__name__})")


def _short(text: str, limit: int = 120) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
