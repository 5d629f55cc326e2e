"""``taskmoe launch`` as a user runs it, in processes of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.helpers.corpus import Corpus
from tests.helpers.training import WIDER, train_flags

PATIENCE = 600  # seconds
UPDATES = 40
SAVED = 10
# The batches of one process are those of two if it takes two at a time.
FLAGS = (
    *WIDER, "--max-update", UPDATES, "--save-interval-updates", SAVED, "--keep-interval-updates", 1,
    "--no-epoch-checkpoints", "--disable-validation", "--moe-expert-parallel",
)  # fmt: skip


@contextmanager
def start(
    corpus: Corpus, save_dir: Path, *flags: Any, directory: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Train on two processes, which end with the context; what they print comes line by line."""
    command = ["taskmoe", "launch", "--processes", "2", "--", "fairseq-train", *train_flags(corpus, save_dir, *flags)]
    script = "import sys; from taskmoe_plugin.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-P", "-c", script, *command[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=directory,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> list[str]:
    """The lines that are still to come."""
    return process.communicate(timeout=PATIENCE)[0].splitlines()


def workers(process: subprocess.Popen[str]) -> dict[int, int]:
    """The processes that a launched command has started: their ids by rank."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            parent = re.search(r"^PPid:\s(\d+)$", (directory / "status").read_text(), re.MULTILINE)
            environment = (directory / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent and int(parent[1]) == process.pid:
            ranks = [int(each.removeprefix(b"RANK=")) for each in environment if each.startswith(b"RANK=")]
            found.update(dict.fromkeys(ranks, int(directory.name)))
    return found


def kill_worker(process: subprocess.Popen[str], rank: int) -> None:
    """Kill one of the processes that a launched command has started."""
    os.kill(workers(process)[rank], signal.SIGKILL)


def losses(lines: Sequence[str]) -> dict[int, float]:
    """The loss that was logged for each update."""
    found = [re.search(r'"loss": "([\d.]+)".*"num_updates": "(\d+)"', line) for line in lines if "train_inner" in line]
    return {int(each[2]): float(each[1]) for each in found if each}
