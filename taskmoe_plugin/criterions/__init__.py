"""The criterions of MoE translation models."""

from taskmoe_plugin.criterions.taskmoe_label_smoothed_cross_entropy import TaskMoELabelSmoothedCrossEntropyCriterion
from taskmoe_plugin.criterions.taskmoe_word_distillation import TaskMoEWordDistillationCriterion

__all__ = ["TaskMoELabelSmoothedCrossEntropyCriterion", "TaskMoEWordDistillationCriterion"]
