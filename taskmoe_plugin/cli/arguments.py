"""Values of flags that several commands have."""

from __future__ import annotations

from argparse import ArgumentTypeError

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
