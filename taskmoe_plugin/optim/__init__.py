"""Optimizers, and what they cannot be used with."""

# What registers once fairseq is imported needs modules of this package: they must not be half imported then.
import fairseq  # noqa: F401

from taskmoe_plugin.optim.adam import TaskMoEAdam

__all__ = ["TaskMoEAdam"]
