"""Systems in processes of their own, so that each one's peak memory can be told.

A worker reads one JSON message per line from its standard input and answers each with one line: first what to set up,
then what to do. It ends when its input does.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from taskmoe_plugin.errors import TaskMoEError, one_line_errors

Message = dict[str, Any]


class WorkerClock:
    """Counts the seconds that workers say their work took: neither messages nor preparations are timed."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """The seconds so far."""
        return self.seconds


class Worker:
    """The other end of a worker process; a context manager that ends it.

    Args:
        command: arguments of the Python interpreter that start it.
        setup: its first message.
        threads: how many threads its numerical libraries use.
    """

    def __init__(self, command: Sequence[str], setup: Message, threads: int) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        path = [os.getcwd() if part == "" else part for part in sys.path]
        env["PYTHONPATH"] = os.pathsep.join(path)
        self.name = " ".join(command)
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.ready = self.ask(setup)

    def ask(self, message: Message) -> Message:
        """Send a message and wait for the answer; fails with one line if the worker has ended."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise TaskMoEError(f"{self.name}: ended with status {status}; what is wrong is written above")
        return json.loads(line)  # type: ignore[no-any-return]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.communicate()


def serve(set_up: Callable[[Message], Callable[[Message], Message]]) -> None:
    """Be a worker.

    Args:
        set_up: makes, of the first message, the function that answers the others. Every answer also gets
            ``peak_bytes``, the most memory this process has had resident so far, and, where it uses a GPU,
            ``peak_gpu_bytes``, the most that its tensors have taken there.
    """
    # Whatever a library prints goes to standard error: the answers alone go to the parent.
    logging.disable(logging.INFO)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    first = sys.stdin.readline()
    with one_line_errors():
        handle = set_up(json.loads(first))
    print(json.dumps(peaks()), file=answers, flush=True)
    for line in sys.stdin:
        answer = handle(json.loads(line))
        print(json.dumps({**answer, **peaks()}), file=answers, flush=True)


def peaks() -> Message:
    """The most memory this process has had: ``peak_bytes``, and ``peak_gpu_bytes`` if it uses a GPU."""
    found = {"peak_bytes": peak_bytes()}
    if torch.cuda.is_initialized():
        found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    return found


def peak_bytes() -> int:
    """The most memory this process has had resident."""
    # getrusage would do, but on Linux a new process inherits what its parent had.
    with open("/proc/self/status", encoding="utf-8") as status:
        kilobytes = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024
