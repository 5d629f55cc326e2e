"""The criterion of MoE translation models."""

from taskmoe_plugin.criterions.taskmoe_label_smoothed_cross_entropy import TaskMoELabelSmoothedCrossEntropyCriterion

__all__ = ["TaskMoELabelSmoothedCrossEntropyCriterion"]
