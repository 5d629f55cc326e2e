"""Writing a subnet as a fairseq checkpoint."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskmoe_plugin.models.config import add_moe_args
from taskmoe_plugin.models.subnet_shape import SubnetShape
from taskmoe_plugin.models.task_table import split_pair
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.fold import FeedForward, pad
from taskmoe_plugin.subnet.plan import Fate, Plan, StackPlan, args_for
from taskmoe_plugin.tasks.validation_bleu import add_bleu_args

STOCK_MODEL = "transformer"
STOCK_TASK = "translation_multi_simple_epoch"
STOCK_CRITERION = "label_smoothed_cross_entropy"


def pad_layers(weights: dict[str, Tensor], plan: Plan) -> dict[str, int]:
    """Widen, in place, the feed-forward networks of each stack to the widest of them, as stock fairseq needs.

    Args:
        weights: the tensors of a subnet without MoE layers, by name.
        plan: what the subnet is.

    Returns:
        The width of each stack.
    """
    widths = {}
    for name, stack in plan.stacks.items():
        widths[name] = max(ffn_dims(weights, stack))
        for layer in range(stack.layers):
            prefix = f"{name}.layers.{layer}."
            parts = [prefix + part for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")]
            ffn = FeedForward(*(weights[part] for part in parts))
            if ffn.width < widths[name]:
                wide = pad(ffn, widths[name])
                weights.update(zip(parts, (wide.fc1_weight, wide.fc1_bias, wide.fc2_weight, wide.fc2_bias)))
    return widths


def ffn_dims(weights: dict[str, Tensor], stack: StackPlan) -> list[int]:
    """Hidden width of the feed-forward network of each layer; of an MoE layer, that of an expert."""
    prefixes = [f"{stack.config.stack}.layers.{layer}.fc1.bias" for layer in range(stack.layers)]
    return [weights[name].numel() if name in weights else stack.config.ffn_dim for name in prefixes]


def stock_args(args: Namespace, widths: dict[str, int]) -> Namespace:
    """Model arguments for fairseq's own ``transformer``, with nothing of the plugin left in them.

    Args:
        args: the full model's.
        widths: the width of the feed-forward networks of each stack.
    """
    args = _without_plugin_flags(args)
    for stack, width in widths.items():
        setattr(args, f"{stack}_ffn_embed_dim", width)
    return args


def plugin_args(args: Namespace, plan: Plan, weights: dict[str, Tensor]) -> Namespace:
    """Model arguments for ``taskmoe_transformer`` as extraction leaves it."""
    args = args_for(args, plan.pairs)
    args.arch = "taskmoe_transformer"
    args.user_dir = None
    args.base_layers = 0
    shapes = {}
    for name, stack in plan.stacks.items():
        routed = stack.moe_layers if stack.fate is Fate.ROUTED else []
        shapes[name] = SubnetShape(
            tuple(ffn_dims(weights, stack)), {layer: stack.kept_experts(layer) for layer in routed}
        )
        setattr(args, f"{name}_ffn_embed_dim", stack.config.ffn_dim)
        if stack.fate in (Fate.FOLDED, Fate.DENSE):
            setattr(args, f"{name}_moe_freq", 0)
    args.moe_freq = max(args.encoder_moe_freq, args.decoder_moe_freq)
    args.moe_task_gate = "learned"
    SubnetShape.write(args, shapes)
    return args


def write_model(
    directory: Path, checkpoint: Checkpoint, plan: Plan, weights: dict[str, Tensor], padded: bool
) -> dict[str, Any]:
    """Write ``model.pt``, a checkpoint that fairseq's commands load.

    Args:
        directory: where to; it exists.
        checkpoint: the full model, whose configuration is kept where it can be.
        plan: what the subnet is.
        weights: its tensors by name, which are padded in place if need be.
        padded: whether a subnet without MoE layers becomes a stock ``transformer``.

    Returns:
        What ``subnet.json`` says of the format, and the size of the file.
    """
    details: dict[str, Any] = {"format": "fairseq"}
    if padded and plan.dense:
        own = {name: ffn_dims(weights, stack) for name, stack in plan.stacks.items()}
        before = _count(weights)
        widths = pad_layers(weights, plan)
        details["padding"] = {"from": own, "to": widths, "parameters": _count(weights) - before}
        args = stock_args(checkpoint.args, widths)
    else:
        args = plugin_args(checkpoint.args, plan, weights)
    path = directory / "model.pt"
    _save(path, checkpoint, plan, args, weights)
    return {**details, "arch": args.arch, "bytes": path.stat().st_size}


def _count(weights: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())


def _save(path: Path, checkpoint: Checkpoint, plan: Plan, args: Namespace, weights: dict[str, Tensor]) -> None:
    cfg = deepcopy({name: part for name, part in checkpoint.cfg.items() if name != "model"})
    cfg["model"] = args
    cfg["common"]["user_dir"] = None
    history = deepcopy(checkpoint.optimizer_history)
    if args.arch == STOCK_MODEL:
        _forget_plugin(cfg, history)
    task = cfg["task"]
    task.source_lang, task.target_lang = split_pair(plan.pairs[0])
    task.lang_pairs, task.langs, task.lang_dict = list(plan.pairs), checkpoint.langs, None
    # The dictionaries are beside the model.
    task.fixed_dictionary = task.source_dict = task.target_dict = None
    state = {
        "args": None,
        "cfg": cfg,
        "model": weights,
        "optimizer_history": history,
        # fairseq wants to know where in the data training stood: at its start.
        "extra_state": {"train_iterator": {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True}},
    }
    with path.open("wb") as file:
        torch.save(state, file)


def _forget_plugin(cfg: dict[str, Any], history: list[dict[str, Any]]) -> None:
    cfg["task"] = _without_plugin_flags(cfg["task"])
    criterion = {name: value for name, value in cfg["criterion"].items() if not name.startswith("moe_")}
    cfg["criterion"] = {**criterion, "_name": STOCK_CRITERION}
    for entry in history:
        entry["criterion_name"] = "LabelSmoothedCrossEntropyCriterion"


def _without_plugin_flags(args: Namespace) -> Namespace:
    parser = ArgumentParser(add_help=False)
    add_moe_args(parser)
    add_bleu_args(parser)
    flags = {*vars(parser.parse_args([])), "moe_gate_loss_wt", "moe_z_loss_wt"}
    kept = {name: value for name, value in vars(args).items() if name not in flags and not name.startswith("taskmoe_")}
    stock = {"task": STOCK_TASK, "criterion": STOCK_CRITERION, "arch": STOCK_MODEL, "user_dir": None, "base_layers": 0}
    name = STOCK_MODEL if args._name == args.arch else STOCK_TASK
    return Namespace(**{**kept, **stock, "_name": name})
