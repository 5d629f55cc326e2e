"""Commands in processes of their own."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.helpers.entry_points import run_command
from tests.helpers.forking import context

PATIENCE = 120  # seconds
# What is logged, and how far a benchmark is.
_LOG = re.compile(r"\d{4}-\d\d-\d\d |(DEBUG|INFO|WARNING|ERROR)[: ]|taskmoe: (?!error: )|\s*$")


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        status: its exit status; minus the signal that killed it.
        errors: what it wrote to standard error, without the lines of logs.
        output: what it wrote to standard output.
        seconds: how long it took.
    """

    status: int
    errors: list[str]
    output: str
    seconds: float


def lay_out(world: Path, place: Path) -> None:
    """Give a case a directory like another. Files are links: whoever changes one puts another in its place."""
    shutil.copytree(world, place, copy_function=os.link)


def start(command: Sequence[Any], directory: Path) -> BaseProcess:
    """Start a command; what it writes goes to ``stdout`` and ``stderr`` in a directory that is there."""
    process = context.Process(target=_run, args=([str(each) for each in command], directory))
    process.start()
    return process


def run(command: Sequence[Any], directory: Path, kill_after: float | None = None) -> Ended:
    """Run a command to its end, or kill it after some seconds."""
    directory.mkdir(exist_ok=True)
    begin = time.monotonic()
    process = start(command, directory)
    process.join(PATIENCE if kill_after is None else kill_after)
    if process.is_alive():
        process.kill()
        process.join()
        assert kill_after is not None, f"{command} did not end"
    seconds = time.monotonic() - begin
    lines = (directory / "stderr").read_text(errors="replace") if (directory / "stderr").exists() else ""
    errors = [line for line in lines.splitlines() if not _LOG.match(line)]
    output = (directory / "stdout").read_text(errors="replace") if (directory / "stdout").exists() else ""
    assert process.exitcode is not None
    return Ended(process.exitcode, errors, output, seconds)


def _run(command: list[str], directory: Path) -> None:
    output, errors = (os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("stdout", "stderr"))
    run_command(command, (os.open(os.devnull, os.O_RDONLY), output, errors))
