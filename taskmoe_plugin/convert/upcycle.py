"""``upcycle``: a trained dense Transformer made into a ``taskmoe_transformer`` that computes exactly the same."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from taskmoe_plugin.convert.conversion import Conversion, Converted
from taskmoe_plugin.convert.dense import sparse_cfg
from taskmoe_plugin.convert.optimizer_state import OptimizerState
from taskmoe_plugin.convert.source import Source
from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.models.config import STACKS
from taskmoe_plugin.models.loading import dictionary_sizes, meta_model
from taskmoe_plugin.models.stack import StackConfig
from taskmoe_plugin.models.upcycling import StackUpcycling, plan_upcycling
from taskmoe_plugin.moe import LinearGate
from taskmoe_plugin.subnet.scratch import Scratch

CRITERION = "TaskMoELabelSmoothedCrossEntropyCriterion"
SEED = 1  # fairseq's default


def upcycle(flags: Mapping[str, Any], copies: bool, optimizer: bool) -> Conversion:
    """The conversion.

    Args:
        flags: the new model's, as attributes; those that are left out have the architecture's defaults.
        copies: whether experts are copies of the dense networks, rather than slices.
        optimizer: whether the state of the optimizer is carried along.
    """
    return partial(_upcycle, flags, copies, optimizer)


def _upcycle(flags: Mapping[str, Any], copies: bool, optimizer: bool, source: Source, scratch: Scratch) -> Converted:
    source.require(dense=True, remedy="upcycling is for dense models; use it as it is")
    cfg = sparse_cfg(source, flags)
    args = cfg["model"]
    if not copies and args.moe_combine != "weights" and args.moe_expert_ffn_dim is None:
        args.moe_expert_ffn_dim = _slice_width(args)
    configs = [StackConfig.from_args(args, stack) for stack in STACKS]
    names = set(source.tensors.names())
    plans = plan_upcycling(configs, lambda name: source.tensors.shape(name) if name in names else None)
    if not plans:
        raise UsageError("--moe-freq 0: the model stays dense; leave it out, or make one stack sparse")
    replaced = {dense: (name, plan) for plan in plans for name, dense in plan.dense_names.items()}
    model = {name: source.kept(name, scratch) for name in source.tensors.names() if name not in replaced}
    for dense, (name, plan) in replaced.items():
        parts = plan.experts(dense, source.tensors.tensor(dense))
        model[name] = scratch.stack(parts, plan.config.experts)
    for plan in plans:
        model.update(plan.gates(dict(_fresh_gates(plan.config))))
    changes = _with_optimizer(source, args, plans, scratch) if optimizer else {}
    return Converted(cfg, model, "; ".join(map(str, plans)), changes)


def _slice_width(args: Namespace) -> int:
    widths = {getattr(args, f"{stack}_ffn_embed_dim") for stack in STACKS if getattr(args, f"{stack}_moe_freq")}
    if len(widths) > 1:
        raise UsageError(
            "--copies: the networks of encoder and decoder differ in width, and slices of them would; give --copies, "
            "or make one stack sparse (--decoder-moe-freq 0)"
        )
    width, k = widths.pop() if widths else args.moe_top_k, args.moe_top_k
    if width % k:
        raise UsageError(
            f"--moe-top-k {k}: does not divide the width {width} of the networks; give another, or --copies"
        )
    return int(width // k)


def _fresh_gates(config: StackConfig) -> Iterator[tuple[str, Tensor]]:
    """Initial values of the gates of a stack, by name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED + (config.stack == "decoder"))
        tasks = config.build_tasks()
        if tasks is not None:
            yield from ((f"{config.stack}.tasks.{name}", each) for name, each in tasks.state_dict().items())
        if config.by_task:
            return
        for layer in config.moe_layers:
            gate = LinearGate(config.width, config.experts)
            yield f"{config.stack}.layers.{layer}.moe.router.gate.weight", gate.weight.data


def _with_optimizer(source: Source, args: Namespace, plans: list[StackUpcycling], scratch: Scratch) -> dict[str, Any]:
    """What else of the checkpoint changes, if training goes on with the optimizer's state."""
    sizes = dictionary_sizes(source.state["model"], str(source.path))
    before, after = (
        {name: each.shape for name, each in meta_model(each, sizes).named_parameters() if each.requires_grad}
        for each in (source.cfg["model"], args)
    )
    state = OptimizerState.read(source, before)
    moments = {name: (dense, plan) for plan in plans for name, dense in plan.dense_names.items()}
    history = deepcopy(source.state["optimizer_history"])
    history[-1]["criterion_name"] = CRITERION
    return {"last_optimizer_state": state.rewrite(after, moments, scratch), "optimizer_history": history}
