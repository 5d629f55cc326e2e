"""Starting several real processes and waiting for them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE = 240  # seconds


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def started(module: str, processes: int, *args: Any) -> Iterator[list[subprocess.Popen[str]]]:
    """Run ``python -m module RANK PROCESSES PORT args...`` for every rank; all are killed when the context ends."""
    port = free_port()
    commands = [[sys.executable, "-m", module, *map(str, (rank, processes, port, *args))] for rank in range(processes)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "LOGLEVEL": "ERROR"}
    running = [
        subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for command in commands
    ]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def finish(running: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Wait for processes that must succeed; returns what each printed."""
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), "\n".join(outputs)
    return outputs
