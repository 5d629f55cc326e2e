"""The MoE layer: router, dispatch, experts, combine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from taskmoe_plugin.moe.batch import RoutedBatch
from taskmoe_plugin.moe.dispatch import Dispatch, combine, expert_capacity, make_dispatch, run_experts
from taskmoe_plugin.moe.experts import AbsentExpert, Expert
from taskmoe_plugin.moe.grouped import can_group, run_grouped
from taskmoe_plugin.moe.placement import task_assignments
from taskmoe_plugin.moe.routers import Gates, Router

if TYPE_CHECKING:  # needs fairscale, which a layer without it does not
    from taskmoe_plugin.moe.expert_parallel import ExpertParallel


@dataclass(frozen=True)
class MoERecord:
    """What one pass through a MoE layer leaves for losses and statistics.

    Attributes:
        gates: gates of U units.
        share: (U,) fp32, the share of tokens of each unit.
        tokens: the number of tokens that ``share`` divides; None where it is not of the batch but of all training data.
        dropped: share of the assignments that were dropped, 0 when dropless.
    """

    gates: Gates
    share: Tensor
    tokens: int | None
    dropped: float


class MoELayer(nn.Module):
    """Replaces the feed-forward network of a Transformer layer: y = Σ_e weight_e · expert_e(x) (TaskMoE, section 2).

    Args:
        router: gives every token its experts.
        experts: one feed-forward network per expert.
        capacity_factor: in training an expert takes at most ceil(factor · K · N / E) tokens; 0: dropless.
        eval_capacity_factor: the same in evaluation.
        indices: the global index of each expert, 0, 1, … by default; a subnet lacks those that its tasks do not use.
        parallel: the processes over which the experts are spread; of those that others hold, ``experts`` has
            placeholders.
    """

    def __init__(
        self,
        router: Router,
        experts: Iterable[Expert | AbsentExpert],
        capacity_factor: float = 0.0,
        eval_capacity_factor: float = 0.0,
        indices: Iterable[int] | None = None,
        parallel: ExpertParallel | None = None,
    ) -> None:
        super().__init__()
        self.router = router
        # Keyed by the global index, so that a checkpoint names an expert alike however many a process holds.
        named = zip(count() if indices is None else indices, experts)
        self.experts = nn.ModuleDict({str(index): expert for index, expert in named})
        self.capacity_factor = capacity_factor
        self.eval_capacity_factor = eval_capacity_factor
        self.parallel = parallel

    def forward(self, x: Tensor, batch: RoutedBatch) -> tuple[Tensor, MoERecord]:
        """Map (T, B, C) to (T, B, C), padding to zero.

        Raises:
            ValueError: a task router got no tasks.
        """
        flat = x.reshape(-1, x.size(-1))
        gates = self.router.gates(flat, batch)
        # Processes that share experts must do the same things, also where one of them has a batch of one task.
        if batch.only_task is not None and self.parallel is None:
            output, dropped = self._one_task(flat, gates, batch.only_task), 0.0
        else:
            output, dropped = self._dispatched(flat, gates, batch)
        share = self.router.share(batch, gates.probs.size(0))
        tokens = batch.tokens.row.numel() if batch.task_share is None else None
        return output.view_as(x), MoERecord(gates, share, tokens, dropped)

    def _one_task(self, x: Tensor, gates: Gates, task: int) -> Tensor:
        # All tokens share their experts: nothing to sort, gather or scatter.
        weights = gates.weights[task].to(x.dtype)
        experts = gates.experts[task].tolist() if gates.listed is None else gates.listed[task]
        outputs = [self.experts[str(expert)](x) for expert in experts]
        total: Tensor = outputs[0] * weights[0]
        for output, weight in zip(outputs[1:], weights[1:]):
            total = total.addcmul(output, weight)
        return total

    def _dispatched(self, x: Tensor, gates: Gates, batch: RoutedBatch) -> tuple[Tensor, float]:
        experts, weights = gates.experts, gates.weights
        unit = self.router.unit(batch)
        if unit is not None:
            experts, weights = experts[unit], weights[unit]
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        index = batch.tokens.index
        if factor:
            # Who comes first must not depend on padding or on how rows are split: sentence after sentence.
            turn = batch.tokens.row.argsort(stable=True)
            experts, weights, index = experts[turn], weights[turn], turn if index is None else index[turn]
        tokens, k = experts.shape
        num_experts = self.router.num_experts
        held = {int(name): expert for name, expert in self.experts.items()}
        if self.parallel is None:
            capacity = expert_capacity(factor, tokens, num_experts, k) if factor else None
            counts = _known_counts(gates, batch, num_experts)
            dispatch = _from_rows(make_dispatch(experts, weights, num_experts, capacity, None, counts), index)
            if counts is None and can_group(x):
                all_experts = cast(list[Expert], list(held.values()))
                outputs = run_grouped(x.index_select(0, dispatch.token), all_experts, dispatch.ends)
                output = combine(x, outputs, dispatch)
            else:
                output = run_experts(x, dispatch, held)
        else:
            known = batch.task_tokens
            sent = None if known is None else task_assignments(known, gates.experts, num_experts)
            dispatch, sent = self.parallel.make_dispatch(experts, weights, num_experts, factor, sent)
            dispatch = _from_rows(dispatch, index)
            output = self.parallel.run_experts(x, dispatch, sent, held)
        return output, dispatch.dropped / max(tokens * k, 1)


def _known_counts(gates: Gates, batch: RoutedBatch, num_experts: int) -> list[int] | None:
    # A task's tokens all have the same experts, so what is known of tasks tells the assignments of each expert.
    if gates.listed is None or batch.task_counts is None:
        return None
    counts = [0] * num_experts
    for experts, tokens in zip(gates.listed, batch.task_counts):
        for expert in experts:
            counts[expert] += tokens
    return counts


def _from_rows(dispatch: Dispatch, index: Tensor | None) -> Dispatch:
    return dispatch if index is None else replace(dispatch, token=index[dispatch.token])
