"""Learning from another model's word distributions besides the references."""

import functools
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq import checkpoint_utils
from fairseq.criterions import register_criterion
from torch import Tensor

from taskmoe_plugin.criterions.taskmoe_label_smoothed_cross_entropy import (
    TaskMoELabelSmoothedCrossEntropyCriterion,
    TaskMoELabelSmoothedCrossEntropyCriterionConfig,
)
from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.files.loading import LoadError, load
from taskmoe_plugin.models.task_table import split_pair


@dataclass
class TaskMoEWordDistillationCriterionConfig(TaskMoELabelSmoothedCrossEntropyCriterionConfig):
    distill_from: Optional[str] = field(  # noqa: UP045 (fairseq makes the flag's type of it)
        default=None, metadata={"help": "checkpoint of the teacher, with the same dictionary"}
    )
    distill_wt: float = field(
        default=0.25, metadata={"help": "weight of the teacher's distributions; the references have the rest"}
    )


@register_criterion("taskmoe_word_distillation", dataclass=TaskMoEWordDistillationCriterionConfig)
class TaskMoEWordDistillationCriterion(TaskMoELabelSmoothedCrossEntropyCriterion):
    """In training, (1 - w) · label-smoothed cross-entropy + w · cross-entropy with the teacher's distribution.

    The mixture is Switch Transformer's (section 4.2, where w = 0.25). Validation uses the references alone, so that its
    losses compare with those of other criterions.
    """

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        distill_from: str | None,
        distill_wt: float = 0.25,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
        moe_gate_loss_wt: float = 0.01,
        moe_task_gate_loss_wt: float = 0.0,
        moe_z_loss_wt: float = 0.0,
        moe_mutual_information_wt: float = 0.0,
    ) -> None:
        super().__init__(
            task,
            sentence_avg,
            label_smoothing,
            ignore_prefix_size,
            report_accuracy,
            moe_gate_loss_wt,
            moe_task_gate_loss_wt,
            moe_z_loss_wt,
            moe_mutual_information_wt,
        )
        if distill_from is None:
            raise UsageError(
                "--distill-from: --criterion taskmoe_word_distillation needs a teacher's checkpoint; give it"
            )
        if not 0 <= distill_wt <= 1:
            raise UsageError(f"--distill-wt {distill_wt:g}: give a value from 0 to 1")
        self.distill_wt = distill_wt
        self.distill_from = distill_from

    @functools.cached_property
    def teacher(self) -> Any:
        """The teacher, loaded for the first training batch: who validates need not have it."""
        # No submodule, whose parameters would be trained, and saved in every checkpoint.
        with torch.random.fork_rng(devices=[]):
            return _load_teacher(self.distill_from, self.task)

    def _row_losses(self, model: Any, net_output: Any, sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
        loss, nll_loss = super()._row_losses(model, net_output, sample)
        if not self.training:
            return loss, nll_loss
        lprobs, target = self.get_lprobs_and_target(model, net_output, sample)
        wanted = self._teacher_probs(sample, lprobs)
        by_token = -(wanted * lprobs).sum(dim=-1).masked_fill(target.eq(self.padding_idx), 0)
        soft = by_token.view(loss.size(0), -1).sum(dim=1)
        return (1 - self.distill_wt) * loss + self.distill_wt * soft, nll_loss

    @torch.no_grad()
    def _teacher_probs(self, sample: dict[str, Any], like: Tensor) -> Tensor:
        teacher = self.teacher.to(like.device)
        probs: Tensor = teacher.get_normalized_probs(teacher(**sample["net_input"]), log_probs=False)
        if self.ignore_prefix_size > 0:
            probs = probs[:, self.ignore_prefix_size :]
        return probs.reshape(like.shape).to(like.dtype)


def _load_teacher(path: str, task: Any) -> Any:
    try:
        load(Path(path))
    except LoadError as error:
        raise UsageError(error.of(f"--distill-from {path}")) from error
    try:
        # A copy: a task keeps what belongs to the model that it has built last.
        (teacher,), _ = checkpoint_utils.load_model_ensemble([path], task=copy(task))
    except RuntimeError as error:
        raise UsageError(
            f"--distill-from {path}: does not fit this task ({' '.join(str(error).split())[:200]})"
        ) from error
    for pair in task.routed_pairs if hasattr(teacher, "check_pair") else ():
        try:
            teacher.check_pair(*split_pair(pair))
        except UsageError as error:
            raise UsageError(f"--distill-from {path}: cannot teach {pair} ({error})") from error
    return teacher.eval().requires_grad_(False)
