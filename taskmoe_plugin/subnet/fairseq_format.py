"""Writing a subnet as a fairseq checkpoint."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor

from taskmoe_plugin.files.loading import load
from taskmoe_plugin.files.writing import save
from taskmoe_plugin.models.config import add_low_rank_args, add_moe_args, settle_task_gates
from taskmoe_plugin.models.subnet_shape import SubnetShape
from taskmoe_plugin.models.task_table import split_pair
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.plan import Plan, StackForm, args_for
from taskmoe_plugin.tasks.remembered_flags import forget_dictionaries
from taskmoe_plugin.tasks.task_args import task_defaults

STOCK_MODEL = "transformer"
# Its Python interface works, unlike that of translation_multi_simple_epoch, for which there is all it needs, too.
STOCK_TASK = "translation"
STOCK_CRITERION = "label_smoothed_cross_entropy"
CRITERION_FLAGS = ("moe_", "distill_")


def stock_args(args: Namespace, widths: Mapping[str, int]) -> Namespace:
    """Model arguments for fairseq's own ``transformer``, with nothing of the plugin left in them.

    Args:
        args: the full model's.
        widths: the width of the feed-forward networks of each stack.
    """
    args = _without_plugin_flags(args, STOCK_MODEL)
    for stack, width in widths.items():
        setattr(args, f"{stack}_ffn_embed_dim", width)
    return args


def plugin_args(args: Namespace, plan: Plan, dims: Mapping[str, list[int]]) -> Namespace:
    """Model arguments for ``taskmoe_transformer`` as extraction leaves it.

    Args:
        args: the full model's.
        plan: what the subnet is.
        dims: the width of the feed-forward network of each layer of each stack.
    """
    args = args_for(args, plan.pairs)
    args.arch = "taskmoe_transformer"
    args.user_dir = None
    args.base_layers = 0
    settle_task_gates(args)
    if any(stack.config.merge for stack in plan.stacks.values()):
        # What is left has a network for each task, which nothing has to merge any more.
        args.moe_combine, args.moe_top_k = "outputs", 1
        args.moe_expert_count = max(len(stack.tasks) for stack in plan.stacks.values())
    shapes = {}
    for name, stack in plan.stacks.items():
        shapes[name] = stack.shape(dims[name])
        if stack.form in (StackForm.FOLDED, StackForm.DENSE):
            setattr(args, f"{name}_moe_freq", 0)
    if plan.languages is not None:
        args.task_low_rank, args.task_low_rank_by = 0, "pair"
    SubnetShape.write(args, shapes)
    return args


def write_model(path: Path, checkpoint: Checkpoint, plan: Plan, args: Namespace, weights: dict[str, Tensor]) -> None:
    """Write a checkpoint that fairseq's commands load.

    Args:
        path: the file.
        checkpoint: the full model, whose configuration is kept where it can be.
        plan: what the subnet is.
        args: arguments of its model.
        weights: its tensors by name.
    """
    cfg = deepcopy({name: part for name, part in checkpoint.cfg.items() if name != "model"})
    cfg["model"] = args
    cfg["common"]["user_dir"] = None
    history = deepcopy(checkpoint.optimizer_history)
    if args.arch == STOCK_MODEL:
        _forget_plugin(cfg, history)
    # A model's arguments are those of its task, too, and some tools look there.
    for part in (cfg["model"], cfg["task"]):
        _set_languages(part, plan, checkpoint.langs)
    if args.arch == STOCK_MODEL:
        # Safe loading refuses a Namespace where no plugin vouches for it; fairseq takes dictionaries as well.
        cfg = {name: vars(part) if isinstance(part, Namespace) else part for name, part in cfg.items()}
        cfg["model"] = _with_attributes(cfg["model"])
    state = {
        "args": None,
        "cfg": cfg,
        "model": weights,
        "optimizer_history": history,
        # fairseq wants to know where in the data training stood: at its start.
        "extra_state": {"train_iterator": {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True}},
    }
    save(state, path)


def read_model(path: Path) -> tuple[Namespace, Namespace, dict[str, Tensor]]:
    """What ``write_model`` has written: the arguments of the model and of the task, and the tensors by name.

    Raises:
        LoadError: the file cannot be loaded.
    """
    state = load(path)
    model, task = (
        part if isinstance(part, Namespace) else Namespace(**part)
        for part in (state["cfg"][name] for name in ("model", "task"))
    )
    return model, task, state["model"]


def _with_attributes(values: dict[str, Any]) -> OrderedDict[str, Any]:
    """Arguments for tools that ask for their attributes, like CTranslate2's converter, of a type that loads safely."""
    arguments = OrderedDict(values)
    vars(arguments).update(values)
    return arguments


def _set_languages(args: Namespace, plan: Plan, langs: list[str]) -> None:
    """Have arguments name the pairs of the subnet, and its own directory in place of the training's files."""
    args.source_lang, args.target_lang = split_pair(plan.pairs[0])
    args.lang_pairs, args.langs, args.data = list(plan.pairs), list(langs), "."
    args.lang_dict = args.encoder_embed_path = args.decoder_embed_path = None
    forget_dictionaries(args)


def _forget_plugin(cfg: dict[str, Any], history: list[dict[str, Any]]) -> None:
    cfg["task"] = _without_plugin_flags(cfg["task"], STOCK_TASK)
    criterion = {name: value for name, value in cfg["criterion"].items() if not name.startswith(CRITERION_FLAGS)}
    cfg["criterion"] = {**criterion, "_name": STOCK_CRITERION}
    for entry in history:
        entry["criterion_name"] = "LabelSmoothedCrossEntropyCriterion"


def _without_plugin_flags(args: Namespace, name: str) -> Namespace:
    parser = ArgumentParser(add_help=False)
    add_moe_args(parser)
    add_low_rank_args(parser)
    flags = {*vars(parser.parse_args([])), *task_defaults()}
    prefixes = (*CRITERION_FLAGS, "taskmoe_")
    kept = {name: value for name, value in vars(args).items() if name not in flags and not name.startswith(prefixes)}
    stock = {"task": STOCK_TASK, "criterion": STOCK_CRITERION, "arch": STOCK_MODEL, "user_dir": None, "base_layers": 0}
    return Namespace(**{**kept, **stock, "_name": name})
