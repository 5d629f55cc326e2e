"""How our commands end, whatever happens to them: with one line, and nothing half-written."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from taskmoe_plugin.errors import TaskMoEError, one_line_errors


@contextmanager
def running(program: str) -> Iterator[None]:
    """Within the context errors that a user can put right, refusals of the system and interruptions become one line.

    SIGTERM, which batch systems send, interrupts like Ctrl-C, so that what is being written is cleaned up. What
    libraries say of themselves when they are loaded is left out.

    Raises:
        SystemExit: in their place.
    """
    _quieten_libraries()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with one_line_errors(program):
            try:
                yield
            except KeyboardInterrupt:
                raise TaskMoEError("interrupted; what it was writing was not kept, run it again") from None
            except OSError as error:
                raise TaskMoEError(_line(error)) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _quieten_libraries() -> None:
    # fairseq opens the root logger to all levels, and tells what is not installed.
    for name in ("fairseq", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="fairscale")


def _line(error: OSError, limit: int = 200) -> str:
    if error.filename is None:
        return str(error)
    name = str(error.filename)
    if len(name) > limit:
        name = f"{name[: limit // 2]}…{name[-limit // 2 :]}"
    return f"{name}: {error.strerror}; see that it can be used, or give another"
