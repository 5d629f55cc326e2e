"""Mixture-of-experts layers in plain PyTorch: gates, routing, dispatch, experts, low-rank matrices, losses.

Nothing in this package imports fairseq or fairscale, so that it can be used and tested with torch alone. Shape letters
used throughout: T positions, B rows (sentences), C model width, F hidden width of an expert, E experts, K experts per
token, U units that choose together (tasks, sentences or tokens), L MoE layers of a stack, N tokens that are not
padding, A assignments (token, expert), W processes.

Gradients can be taken once: those of gradients (``create_graph=True``) are not those of the experts.
"""

from taskmoe_plugin.moe.assignments import Assignments, drop_beyond, expert_capacity, sort_assignments
from taskmoe_plugin.moe.candidates import Candidates
from taskmoe_plugin.moe.dispatch import Dispatched, Dispatcher, LocalDispatcher
from taskmoe_plugin.moe.experts import Experts, FeedForward
from taskmoe_plugin.moe.gates import (
    Choice,
    FixedTaskGates,
    Gates,
    LinearGate,
    MergingTaskGates,
    StaticTaskGates,
    TaskGates,
    Warmup,
    deal,
    full_precision,
    top_k_gates,
)
from taskmoe_plugin.moe.groups import Groups
from taskmoe_plugin.moe.layer import MoELayer
from taskmoe_plugin.moe.losses import (
    balance_loss,
    expert_load,
    experts_in_use,
    gate_entropy,
    mutual_information_loss,
    z_loss,
)
from taskmoe_plugin.moe.low_rank import CurrentLanguages, Languages, LowRankLinear, fold_low_rank, low_rank_map
from taskmoe_plugin.moe.products import grouped_linear
from taskmoe_plugin.moe.routing import (
    GateRecord,
    Routing,
    SentenceRouter,
    TokenRouter,
    merged_routings,
    routings_of_units,
)
from taskmoe_plugin.moe.tokens import Tokens
from taskmoe_plugin.moe.usage import Usage, count_usage, counted_usage

__all__ = [
    "Assignments",
    "Candidates",
    "Choice",
    "CurrentLanguages",
    "Dispatched",
    "Dispatcher",
    "Experts",
    "FeedForward",
    "FixedTaskGates",
    "GateRecord",
    "Gates",
    "Groups",
    "Languages",
    "LinearGate",
    "LocalDispatcher",
    "LowRankLinear",
    "MergingTaskGates",
    "MoELayer",
    "Routing",
    "SentenceRouter",
    "StaticTaskGates",
    "TaskGates",
    "TokenRouter",
    "Tokens",
    "Usage",
    "Warmup",
    "balance_loss",
    "count_usage",
    "counted_usage",
    "deal",
    "drop_beyond",
    "expert_capacity",
    "expert_load",
    "experts_in_use",
    "fold_low_rank",
    "full_precision",
    "gate_entropy",
    "grouped_linear",
    "low_rank_map",
    "merged_routings",
    "mutual_information_loss",
    "routings_of_units",
    "sort_assignments",
    "top_k_gates",
    "z_loss",
]
