"""Parameters of the full model and of the subnet of each language pair, from shapes alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from taskmoe_plugin.models.low_rank import TENSORS
from taskmoe_plugin.subnet.checkpoint import Checkpoint, MappedTensors
from taskmoe_plugin.subnet.plan import Plan, Planner, StackForm, StackPlan
from taskmoe_plugin.subnet.report import Size
from taskmoe_plugin.subnet.weights import ffn_dims

# What a folded subnet has none of, or has in another width.
_FEED_FORWARD = re.compile(
    r"(encoder|decoder)\.(tasks\.gates\.(embedding|weight|table)"
    r"|layers\.\d+\.(moe\..+|fc[12]\.(weight|bias)|[\w.]+\.low_rank_(source|target)))"
)


@dataclass(frozen=True)
class SubnetSize:
    """The parameters of one subnet.

    Attributes:
        pair: what it translates.
        form: see ``Plan.form``.
        parameters: with each layer's own width.
        padded: with all layers of a stack at one width, as stock fairseq needs it; None if it cannot load it anyway.
    """

    pair: str
    form: str
    parameters: int
    padded: int | None


def subnet_sizes(checkpoint: Checkpoint) -> list[SubnetSize]:
    """The subnet of each trained pair, for a model that has one smaller than itself.

    Raises:
        TaskMoEError: the model has parts of unknown purpose.
    """
    tensors = checkpoint.tensors
    full = Size.of_model(tensors).parameters
    outside = full - sum(tensors.shape(name).numel() for name in tensors.names() if _FEED_FORWARD.fullmatch(name))
    sizes, planner = [], Planner(checkpoint)
    for pair in checkpoint.pairs:
        plan = planner.plan([pair])
        padded = outside + _feed_forward(tensors, plan, padded=True) if plan.dense else None
        sizes.append(SubnetSize(pair, plan.form, outside + _feed_forward(tensors, plan, padded=False), padded))
    return sizes


def low_rank_parameters(tensors: MappedTensors) -> int:
    """The parameters of a model's low-rank language matrices."""
    return sum(tensors.shape(name).numel() for name in tensors.names() if name.endswith(TENSORS))


def _feed_forward(tensors: MappedTensors, plan: Plan, padded: bool) -> int:
    total = 0
    for stack in plan.stacks.values():
        dims = ffn_dims(tensors, stack)
        for layer, width in enumerate(dims):
            if stack.form in (StackForm.WHOLE, StackForm.PRUNED) and layer in stack.moe_layers:
                prefix = f"{stack.config.stack}.layers.{layer}.moe."
                held = sum(tensors.shape(name).numel() for name in tensors.names() if name.startswith(prefix))
                total += held // stack.config.expert_count(layer) * len(stack.kept_experts(layer))
            else:
                total += _network(stack, max(dims) if padded else width)
    return total


def _network(stack: StackPlan, width: int) -> int:
    # fc1 and fc2 with their biases.
    return 2 * width * stack.config.width + width + stack.config.width
