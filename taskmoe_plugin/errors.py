"""How the plugin tells its user of a mistake."""

from __future__ import annotations

import sys
from typing import NoReturn


def usage_error(message: str) -> NoReturn:
    """Print one line on standard error and exit with status 2, the status of wrong usage.

    Args:
        message: names the flag or file, says what is wrong and what to do.
    """
    print(f"taskmoe: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def failure(message: str) -> NoReturn:
    """Print one line on standard error and exit with status 1, the status of everything but wrong usage.

    Args:
        message: names the file, says what is wrong and what to do.
    """
    print(f"taskmoe: error: {message}", file=sys.stderr)
    raise SystemExit(1)
