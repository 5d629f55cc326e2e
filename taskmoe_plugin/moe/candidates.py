"""Routing by token among some of the experts: those of the token's task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from taskmoe_plugin.moe.gates import Gates, full_precision
from taskmoe_plugin.moe.groups import one_hot


@dataclass(frozen=True)
class Candidates:
    """The experts of one layer that the tokens of each task choose among, for one batch.

    Two levels of gates: a task chooses M experts, its set S, and each of its tokens K of these by q, the token's own
    probabilities. The set is that of Lingual-SMoE (Zhao et al. 2024; ``smoe/htop2gate.py`` of its code): the M best
    of a gate that sees the language alone, and tokens choose as if there were no others. There the set is a mask and
    nothing else, so that no translation trains the gate that chooses it. Here a token has the product of both levels,

        p_e = g_e · q_e / Σ_{s in S} g_s · q_s for e in S, otherwise 0,

    as in a hierarchical mixture of experts (Jordan and Jacobs 1994, section 2; Shazeer et al. 2017, appendix B,
    equation 12), where g is the softmax of the task's scores over S (KeepTopK, equations 3 and 5 there). So a task's
    scores learn from all of its tokens: an expert that serves the task worse than the others of its set falls behind
    these, and leaves the set when it falls behind an expert outside. It falls only as long as some tokens choose it:
    the gates of such tasks begin ``HEAD_START`` ahead with the experts that are dealt to them, which is not much more
    than the scores of two tokens differ by at first.

    Attributes:
        allowed: (U + 1, E) bool, the sets; in the last row, for rows of no task, all experts.
        preference: (U + 1, E) fp32, ln(M · g), which is zero where a task prefers none.
        task: (B,) int64, the task of each row, U where it has none.
    """

    HEAD_START: ClassVar[float] = 0.5
    allowed: Tensor
    preference: Tensor
    task: Tensor

    @classmethod
    def of_gates(cls, gates: Gates, task: Tensor, experts: int) -> Candidates:
        """The candidates of a layer.

        Args:
            gates: gates of U tasks; the experts that have weight are a task's set.
            task: (B,), see ``task``.
            experts: E, the number of the layer's experts.
        """
        shares = gates.shares[:, :experts]
        allowed = shares > 0
        relative = shares * allowed.sum(dim=1, keepdim=True)
        preference = relative.masked_fill(allowed.logical_not(), 1.0).log()
        return cls(F.pad(allowed, (0, 0, 0, 1), value=True), F.pad(preference, (0, 0, 0, 1)), task)

    def restrict(self, logits: Tensor, row: Tensor) -> Tensor:
        """Logits (N, E) whose softmax is p, of those whose softmax is q.

        Args:
            logits: (N, E) fp32.
            row: (N,) int64, the row of each token.
        """
        unit = self.task.index_select(0, row)
        with full_precision(logits.device):
            # Backward is a matrix product too. That of indexing adds up thousands of tokens in few rows, one by one.
            preference = one_hot(unit, self.preference.size(0), logits.dtype) @ self.preference
        return (logits + preference).masked_fill(self.allowed.index_select(0, unit).logical_not(), -math.inf)
