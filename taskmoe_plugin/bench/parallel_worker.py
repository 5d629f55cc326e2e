"""One of several processes that train a model together on random data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import distributed as dist

from taskmoe_plugin.bench import train_worker
from taskmoe_plugin.bench.workers import Message, serve


def set_up(message: Message) -> Any:
    """Meet the other processes, and set up like a worker that trains alone; each later message asks for one update.

    An answer also has ``sent_bytes``, what this process has sent to the others during the update.
    """
    if message["processes"] > 1:
        dist.init_process_group(
            "gloo", init_method=message["meeting"], rank=message["rank"], world_size=message["processes"]
        )
    train = train_worker.set_up(message)

    def update(_: Message) -> Message:
        before = written_bytes()
        answer: Message = train({})
        return {**answer, "sent_bytes": written_bytes() - before}

    return update


def written_bytes() -> int:
    """How many bytes this process has written: gloo writes to sockets, and an update to nothing else."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="utf-8").splitlines())
    return int(counters["wchar"])


if __name__ == "__main__":
    serve(set_up)
