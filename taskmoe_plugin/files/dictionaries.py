"""Dictionaries of ``fairseq-preprocess``, checked line by line: fairseq's own errors name neither file nor line."""

from __future__ import annotations

from pathlib import Path

from taskmoe_plugin.errors import TaskMoEError

OVERWRITE = "#fairseq:overwrite"
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def read_dictionary(path: Path) -> str:
    """The text of a dictionary, which ends with a line break.

    Raises:
        TaskMoEError: the file cannot be read, or one of its lines is not ``piece count``, or has a piece again.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TaskMoEError(f"{path}: no such file; give the DATA_BIN that fairseq-preprocess wrote") from None
    except UnicodeDecodeError as error:
        raise TaskMoEError(f"{path}: cannot be read ({error}); copy it again") from None
    except OSError as error:
        raise TaskMoEError(f"{path}: cannot be read ({error.strerror}); see that it can be") from None
    if not text:
        raise TaskMoEError(f"{path}: is an empty dictionary; copy it again")
    text = text if text.endswith("\n") else text + "\n"
    known = dict.fromkeys(SPECIAL, 0)
    for number, line in enumerate(text.split("\n")[:-1], 1):
        piece, overwrite = _parse(path, number, line)
        if piece in known and not overwrite:
            before = f"as line {known[piece]} does" if known[piece] else "which fairseq adds itself"
            raise TaskMoEError(f"{path}: line {number} has {piece!r}, {before}; remove the line")
        known[piece] = number
    return text


def _parse(path: Path, number: int, line: str) -> tuple[str, bool]:
    """As fairseq's ``Dictionary.add_from_file`` does."""
    parts = line.rstrip().rsplit(" ", 1)
    overwrite = parts[-1] == OVERWRITE
    if overwrite:
        parts = parts[0].rsplit(" ", 1)
    try:
        piece, count = parts
        int(count)
    except ValueError:
        raise TaskMoEError(f"{path}: line {number} is not 'piece count': {line[:80]!r}; copy the file again") from None
    return piece, overwrite
