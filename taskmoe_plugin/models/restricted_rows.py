"""Which rows of a batch may use which experts, where a stack routes by token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taskmoe_plugin.models.task_table import TaskTable


def allowed_experts(tasks: Sequence[Sequence[int]], experts: int) -> Tensor:
    """(U + 1, E) bool, the experts of each task and, in the last row, all of them: for languages that have no task.

    Args:
        tasks: the experts of each of the U tasks.
        experts: E.
    """
    allowed = torch.zeros(len(tasks) + 1, experts, dtype=torch.bool)
    for row, own in zip(allowed, tasks):
        row[list(own)] = True
    allowed[-1] = True
    return allowed


class RestrictedRows(nn.Module):
    """From the languages of a row to its task, which restricts its tokens' choice.

    Args:
        table: the tasks.
    """

    lookup: Tensor

    def __init__(self, table: TaskTable) -> None:
        super().__init__()
        unknown = table.lookup < 0
        self.register_buffer("lookup", table.lookup.masked_fill(unknown, len(table.names)), persistent=False)

    def forward(self, src_lang_id: Tensor | None, tgt_lang_id: Tensor | None) -> Tensor:
        """(B,) int64, the task of each row; where the languages have none, the number of tasks.

        Args:
            src_lang_id, tgt_lang_id: (B,) int64, the languages of each row.

        Raises:
            ValueError: there are no language ids.
        """
        if src_lang_id is None or tgt_lang_id is None:
            raise ValueError("experts depend on the languages of the rows: set --source-lang and --target-lang")
        return self.lookup[src_lang_id, tgt_lang_id]
