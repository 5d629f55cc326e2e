"""What ``taskmoe launch`` starts on every process: fairseq-train, told which process it is."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points

from taskmoe_plugin.registration import register


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
        added += ["--cpu", "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]
    return added


def main() -> None:
    """Run the command that is this process's arguments."""
    command = sys.argv[1:]
    sys.argv = [*command, *flags(command)]
    run = next(iter(entry_points(group="console_scripts", name=command[0]))).load()
    # This package was imported before fairseq, which takes it for registered.
    register()
    run()


if __name__ == "__main__":
    main()
