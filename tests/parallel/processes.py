"""Several real processes of one group."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import distributed as dist

from tests.helpers.forking import context

PATIENCE = 900  # seconds


@contextmanager
def started(job: Callable[..., None], processes: int, directory: Path, *args: Any) -> Iterator[Sequence[BaseProcess]]:
    """Run ``job(rank, processes, directory, *args)`` in processes of one group; they are killed when the context ends.

    Args:
        job: a function of a module.
        processes: how many.
        directory: where they meet and leave their results.
        args: for the job.
    """
    meeting = directory / f"meeting-{uuid4().hex}"
    running = [
        context.Process(target=_run, args=(job, meeting, rank, processes, directory, *args))
        for rank in range(processes)
    ]
    for process in running:
        process.start()
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.join()


def finish(running: Sequence[BaseProcess]) -> None:
    """Wait for processes that must succeed."""
    for process in running:
        process.join(PATIENCE)
    assert [process.exitcode for process in running] == [0] * len(running), "what went wrong is printed above"


def _run(job: Callable[..., None], meeting: Path, rank: int, processes: int, *args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
    try:
        job(rank, processes, *args)
    except BaseException:
        traceback.print_exc()
        raise
