"""Which rows of a batch may use which experts, where a stack routes by token among those of a task."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from taskmoe_plugin.models.task_table import TaskTable
from taskmoe_plugin.moe import Candidates, FixedTaskGates, MergingTaskGates, TaskGates


class TaskCandidates(nn.Module):
    """The tasks of a stack that routes by token, and the gates with which they choose what their tokens choose among.

    Args:
        table: the tasks.
        gates: of all MoE layers.
        expert_counts: the number of experts of each layer.
    """

    lookup: Tensor

    def __init__(
        self,
        table: TaskTable,
        gates: TaskGates | MergingTaskGates | FixedTaskGates,
        expert_counts: Sequence[int],
    ) -> None:
        super().__init__()
        self.table = table
        self.gates = gates
        self.expert_counts = tuple(expert_counts)
        self.register_buffer("lookup", table.lookup, persistent=False)

    def forward(self, src_lang_id: Tensor | None, tgt_lang_id: Tensor | None) -> list[Candidates]:
        """The candidates of each layer. Nothing waits for a GPU.

        Args:
            src_lang_id, tgt_lang_id: (B,) int64, the languages of each row; of rows that have no task, any.

        Raises:
            ValueError: there are no language ids.
        """
        if src_lang_id is None or tgt_lang_id is None:
            raise ValueError("experts depend on the languages of the rows: set --source-lang and --target-lang")
        # Where there is none, the lookup says -1.
        task = self.lookup[src_lang_id, tgt_lang_id] % (len(self.table.names) + 1)
        layers = zip(self.gates().layers(), self.expert_counts)
        return [Candidates.of_gates(gates, task, experts) for gates, experts in layers]
