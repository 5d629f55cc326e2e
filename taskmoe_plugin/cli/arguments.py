"""Values of flags that several commands have."""

from __future__ import annotations

import os
import re
from argparse import ArgumentTypeError
from pathlib import Path

from taskmoe_plugin.errors import UsageError


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
        UsageError: there is no such file, or it cannot be read.
    """
    if os.path.isfile(text):  # of text that no file can be called by, Path would raise an error
        try:
            content = Path(text).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--lang-pairs {text}: cannot be read ({error}); give a file of pairs, or pairs") from None
        return [pair for pair in re.split(r"[\s,]+", content) if pair] or [""]
    if "/" in text or text.endswith(".txt"):
        raise UsageError(f"--lang-pairs {text}: no such file; give a file of pairs, pairs such as en-de,en-fr, or all")
    return text.split(",")
