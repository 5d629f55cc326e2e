"""Values of flags that several commands have."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from pathlib import Path

from taskmoe_plugin.errors import UsageError

# Longer text is no path, and no system call takes it.
LONGEST_PATH = 4096


def positive(text: str) -> int:
    """A number from 1 up.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text}: give a number from 1 up")
    return int(text)


def sentences(text: str) -> int | None:
    """The number that ``--sentences`` gives; None: all.

    Raises:
        UsageError: it is neither a number nor ``all``.
    """
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--sentences {text}: give a number from 1 up, or all")
    return int(text)


def lang_pairs(text: str) -> list[str]:
    """The pairs that ``--lang-pairs`` names, with commas between them, or in a file, where lines may end between them.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        path = Path(text)
        content = path.read_text(encoding="utf-8") if len(text) < LONGEST_PATH and path.is_file() else text
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--lang-pairs {text}: cannot be read ({error}); give a file of pairs, or pairs") from None
    return [pair for pair in re.split(r"[\s,]+", content) if pair] or [""]
