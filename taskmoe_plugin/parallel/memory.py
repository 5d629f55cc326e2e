"""Running out of memory where experts are spread over processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.parallel.group import ExpertGroup


@contextmanager
def out_of_memory_ends_all(group: ExpertGroup | None, limit: str) -> Iterator[None]:
    """Within the context a process that runs out of memory fails, and with it all that share experts.

    fairseq would leave a batch of training out, and begin one of validation again, while the others wait for this
    process's part in it.

    Args:
        group: the processes; None: every process has all experts, and nothing is changed.
        limit: the flag that limits a batch, with its value.

    Raises:
        TaskMoEError: instead of PyTorch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if group is None or "out of memory" not in str(error):
            raise
        raise TaskMoEError(
            f"{limit}: process {group.rank} ran out of memory, and the others cannot go on without its experts; give "
            "less, and start again from the last checkpoint"
        ) from error
