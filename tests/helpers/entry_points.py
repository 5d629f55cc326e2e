"""Commands as a new process would run them, in a process forked from one that has imported what they need."""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

ENTRY_POINTS = {
    "taskmoe": "taskmoe_plugin.cli.main:main",
    "fairseq-extract-subnet": "taskmoe_plugin.cli.extract_subnet:main",
    **{
        f"fairseq-{tool}": f"fairseq_cli.{tool}:cli_main"
        for tool in ("train", "generate", "interactive", "preprocess", "validate")
    },
}


def run_command(command: list[str], streams: tuple[int, int, int]) -> NoReturn:
    """Be a command of ``ENTRY_POINTS``, with other standard streams, and end as it does."""
    for descriptor, stream in enumerate(streams):
        os.dup2(stream, descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    # Where the tests run in the background, a shell has them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)
    logging.getLogger().handlers.clear()
    sys.argv = command
    status: Any = 0
    try:
        name, _, function = ENTRY_POINTS[os.path.basename(command[0])].partition(":")
        module = importlib.import_module(name)
        if name.startswith("fairseq_cli"):
            importlib.reload(module)  # which says where logs go
        status = getattr(module, function)()
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        # As the interpreter does.
        status = 1
        try:
            sys.excepthook(type(error), error, error.__traceback__)
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
    if isinstance(status, str):
        print(status, file=sys.stderr)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))
