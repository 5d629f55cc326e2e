"""Whether training can go on from a checkpoint: its weights must mean the same in the new model.

Gates and experts know tasks and each other by number alone: with other flags weights would go to others without a word.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence

import torch

from taskmoe_plugin.errors import UsageError, listed, raise_all
from taskmoe_plugin.models.config import STACKS, check_format, set_moe_defaults
from taskmoe_plugin.models.loading import MODEL, model_name, reading_flags
from taskmoe_plugin.models.stack import StackConfig
from taskmoe_plugin.models.subnet_shape import SubnetShape
from taskmoe_plugin.models.task_table import split_pair

# Flags that change what a weight is or does: of each stack, of both, and of their MoE layers.
DENSE = ("layers", "embed_dim", "ffn_embed_dim", "attention_heads")
OF_BOTH = ("activation_fn", "no_scale_embedding", "task_low_rank", "task_low_rank_by")
OF_EXPERTS = (
    "moe_combine", "moe_expert_count", "moe_top_k", "moe_threshold", "moe_route_scale", "moe_language_experts",
)  # fmt: skip


def check_languages(given: str, trained: str, name: str = "the checkpoint") -> None:
    """Raise ``UsageError`` if ``--langs`` differs from what a model was trained with."""
    if given != trained:
        raise UsageError(f"--langs {given}: {name} was trained with --langs {trained}; give the same")


def check_continues(
    args: Namespace, trained: Namespace, name: str, langs: Sequence[str] = (), finetuned: bool = False
) -> None:
    """Raise an error if a new model cannot take up the weights of a trained one.

    Args:
        args: the arguments of the new model.
        trained: those that the checkpoint carries.
        name: what to call it, a path or a flag and its value.
        langs: the languages that its task was trained with, if they are known.
        finetuned: whether training begins anew with its weights. Then it may be dense: experts are made of it.

    Raises:
        UsageError: it is dense and training would go on, a subnet, or was trained with other flags, languages or tasks.
        TaskMoEError: it is of another format, or damaged.
    """
    if model_name(trained) != MODEL:
        if not finetuned:
            _check_dense(args, name)
        if langs:
            # Their order is that of their tokens in the dictionaries.
            check_languages(args.taskmoe_langs, ",".join(langs), name)
        return
    if SubnetShape.is_subnet(trained):
        raise UsageError(f"{name}: is a subnet, without most of the experts; give the checkpoint it was extracted from")
    check_format(trained, name)
    with reading_flags(name):
        # Older checkpoints do not have all flags.
        trained = Namespace(**vars(trained))
        set_moe_defaults(trained)
        stacks = [(StackConfig.from_args(args, stack), StackConfig.from_args(trained, stack)) for stack in STACKS]
        trained_langs = trained.taskmoe_langs
    check_languages(args.taskmoe_langs, trained_langs, name)
    if finetuned:
        # Of a dense stack experts are made, which cannot take over low-rank matrices.
        stacks = [(own, before) for own, before in stacks if before.moe_layers or before.low_rank]
        # New matrices have a product of zero.
        if not trained.task_low_rank:
            trained.task_low_rank, trained.task_low_rank_by = args.task_low_rank, args.task_low_rank_by
    with reading_flags(name):
        flags = dict.fromkeys(_other_flags(args, trained, stacks))
    raise_all(
        [f"{flag} {given}: {name} was trained with {flag} {before}; give the same" for flag, given, before in flags]
    )
    for own, before in stacks:
        _check_tasks(args, trained, own, before, name)
        _check_warmup(own, before, name, finetuned)


def _check_warmup(own: StackConfig, before: StackConfig, name: str, finetuned: bool) -> None:
    """Raise ``UsageError`` if gates that have begun in one way would go on in another."""
    if own.warmup == before.warmup or not (own.by_task and before.by_task):
        return
    updates = own.warmup.updates if own.warmup else 0
    flag = f"--moe-task-gate-warmup-updates {updates}"
    if own.warmup and not before.warmup:
        raise UsageError(
            f"{flag}: the tasks of {name} were trained with experts that were dealt to them, and keep these; leave it "
            "out"
        )
    if not finetuned and before.warmup:
        raise UsageError(
            f"{flag}: {name} was trained with --moe-task-gate-warmup-updates {before.warmup.updates}, from "
            f"{before.warmup.start} experts on; give the same"
        )


def _check_dense(args: Namespace, name: str) -> None:
    experts = any(StackConfig.from_args(args, stack).moe_layers for stack in STACKS)
    if experts or args.task_low_rank:
        missing, remedy = ("experts", "make experts of its networks") if experts else ("low-rank matrices", "add them")
        raise UsageError(
            f"{name}: is a dense model, which has no {missing} to go on with; give one of {MODEL}, or, "
            f"to {remedy}, --finetune-from-model"
        )


def _other_flags(
    args: Namespace, trained: Namespace, stacks: list[tuple[StackConfig, StackConfig]]
) -> Iterator[tuple[str, object, object]]:
    """Flags whose values differ, each with its new and its trained value."""
    for name in OF_BOTH:
        yield from _other(name, args, trained)
    for name in STACKS:
        for part in DENSE:
            yield from _other(f"{name}_{part}", args, trained)
    for own, before in stacks:
        name = own.stack
        if own.moe_layers != before.moe_layers:
            yield f"--{name}-moe-freq", own.freq, before.freq
        if not (own.moe_layers and before.moe_layers):
            continue
        for part in (f"{name}_moe_routing", *OF_EXPERTS):
            yield from _other(part, args, trained)
        if own.ffn_dim != before.ffn_dim:
            yield "--moe-expert-ffn-dim", own.ffn_dim, before.ffn_dim
        if own.table is not None and before.table is not None:
            yield from _other("moe_task_gate", args, trained)


def _other(name: str, args: Namespace, trained: Namespace) -> Iterator[tuple[str, object, object]]:
    own, before = getattr(args, name), getattr(trained, name)
    if own != before:
        yield f"--{name.replace('_', '-')}", own, before


def _check_tasks(args: Namespace, trained: Namespace, own: StackConfig, before: StackConfig, name: str) -> None:
    """Raise ``UsageError`` if a stack's tasks are not the trained ones: the same pairs, in the same order."""
    if own.table is None or before.table is None:
        return
    restriction = before.shape.restriction if before.shape else None
    if restriction is not None:
        # The table of a pruned stack is that of the pairs that it was pruned to.
        ids = {lang: place for place, lang in enumerate(own.langs, 1)}
        pairs = [(pair, *split_pair(pair)) for pair in args.taskmoe_lang_pairs.split(",")]
        unknown = [pair for pair, source, target in pairs if own.table.lookup[ids[source], ids[target]] < 0]
        if unknown:
            raise UsageError(
                f"--lang-pairs: {name} was pruned to {listed(restriction.pairs)}; leave out {listed(unknown)}"
            )
        return
    if own.routing == "group":
        groups = json.loads(trained.taskmoe_groups)
        for pair, group in json.loads(args.taskmoe_groups).items():
            if groups.get(pair, group) != group:
                raise UsageError(
                    f"--moe-task-groups {args.moe_task_groups}: puts {pair} into {group}, and {name} was trained with "
                    f"it in {groups[pair]}; give the same groups"
                )
    if own.table.names != before.table.names or not torch.equal(own.table.lookup, before.table.lookup):
        given, known = (set(each.taskmoe_lang_pairs.split(",")) for each in (args, trained))
        differences = {"without": given - known, "with": known - given}
        what = [f"{word} {listed(sorted(each))}" for word, each in differences.items() if each]
        raise UsageError(
            f"--lang-pairs: {name} was trained {' and '.join(what) or 'with the same in another order'}, and the "
            f"{own.stack}'s gates know its tasks by their order; give the same pairs"
        )
