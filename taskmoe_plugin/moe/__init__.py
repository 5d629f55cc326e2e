"""Mixture-of-experts layers in plain PyTorch: routers, experts, dispatch, losses.

Nothing in this package imports fairseq, so that it can be used and tested with torch alone. Shape letters used
throughout: T positions, B rows (sentences), C model width, F hidden width of an expert, E experts, K experts per
token, U routing units (tasks, sentences or tokens), N tokens that are not padding, A assignments (token, expert).
"""

from taskmoe_plugin.moe.batch import RoutedBatch, TokenBatch
from taskmoe_plugin.moe.dispatch import Dispatch, expert_capacity, make_dispatch, run_experts
from taskmoe_plugin.moe.experts import AbsentExpert, Expert, seeded
from taskmoe_plugin.moe.layer import MoELayer, MoERecord
from taskmoe_plugin.moe.losses import balance_loss, expert_load, experts_in_use, gate_entropy, load_balance, z_loss
from taskmoe_plugin.moe.placement import held_by
from taskmoe_plugin.moe.routers import (
    FixedTaskRouter,
    Gates,
    Router,
    SentenceRouter,
    StaticTaskRouter,
    TableRouter,
    TaskRouter,
    TokenRouter,
    read_tables,
    top_k_gates,
)
from taskmoe_plugin.moe.usage import Usage, count_usage, counted_usage

__all__ = [
    "AbsentExpert",
    "Dispatch",
    "Expert",
    "FixedTaskRouter",
    "Gates",
    "MoELayer",
    "MoERecord",
    "RoutedBatch",
    "Router",
    "SentenceRouter",
    "StaticTaskRouter",
    "TableRouter",
    "TaskRouter",
    "TokenBatch",
    "TokenRouter",
    "Usage",
    "balance_loss",
    "count_usage",
    "counted_usage",
    "expert_capacity",
    "expert_load",
    "experts_in_use",
    "gate_entropy",
    "held_by",
    "load_balance",
    "make_dispatch",
    "read_tables",
    "run_experts",
    "seeded",
    "top_k_gates",
    "z_loss",
]
