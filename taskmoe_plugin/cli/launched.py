"""What ``taskmoe launch`` starts on every process: fairseq-train, told which process it is."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from importlib.metadata import entry_points

PARENT = "TASKMOE_LAUNCHER"  # the variable that has the process id of the launcher
BACKEND = "legacy_ddp"  # of processes without GPUs
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def flags(command: list[str]) -> list[str]:
    """The flags that a process adds to those of the user.

    Args:
        command: fairseq-train and the user's flags.
    """
    import torch

    added = [
        "--distributed-world-size", os.environ["WORLD_SIZE"], "--distributed-rank", os.environ["RANK"],
        "--distributed-init-method", "env://", "--distributed-no-spawn",
    ]  # fmt: skip
    if "--cpu" in command or not torch.cuda.is_available():
        # fairseq's other wrappers need GPUs, and so does its default backend.
        added += ["--cpu", "--distributed-backend", "gloo", "--ddp-backend", BACKEND]
    return added


def end_with_parent() -> None:
    """Have the system kill this process when the one that started it ends, however it does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before that: then another process has adopted this one.
    if os.getppid() != int(os.environ[PARENT]):
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run the command that is this process's arguments."""
    end_with_parent()
    command = sys.argv[1:]
    sys.argv = [*command, *flags(command)]
    next(iter(entry_points(group="console_scripts", name=command[0]))).load()()


if __name__ == "__main__":
    main()
