"""``prune``: of a model that routes by token, the experts that each language uses most.

Memory-efficient NLLB-200: Language-specific Expert Pruning of a Massively Multilingual Machine Translation Model
(Koishekenov et al., ACL 2023). Nothing is trained: the rows of the gates of the kept experts stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from taskmoe_plugin.convert.activity import Activity, counted_choices
from taskmoe_plugin.convert.conversion import Converted
from taskmoe_plugin.convert.expert_choice import METRICS, best, best_beyond
from taskmoe_plugin.convert.source import Source
from taskmoe_plugin.errors import TaskMoEError, UsageError, listed
from taskmoe_plugin.models.config import STACKS
from taskmoe_plugin.models.stack import StackConfig
from taskmoe_plugin.models.subnet_shape import Restriction, SubnetShape
from taskmoe_plugin.models.task_table import TaskTable, split_pair
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.references import References
from taskmoe_plugin.subnet.scratch import Scratch

RANDOM = "random"
# What has experts of its own, in the encoder and in the decoder; model: all pairs have the same.
BY: dict[str, tuple[str, str] | None] = {
    "language": ("source", "target"),
    "pair": ("pair", "pair"),
    "model": None,
}
# The activity of each layer, by pair.
Measured = Mapping[str, Mapping[int, Activity]]


@dataclass(frozen=True)
class Options:
    """What is kept.

    Attributes:
        pairs: the language pairs that the pruned model is for; empty: all that it was trained on.
        experts: how many experts to keep in each layer of the encoder and of the decoder; None: by the threshold.
        threshold: how much of the metric to keep, see ``best_beyond``.
        metric: one of ``METRICS``, or ``RANDOM``, the control.
        by: one of ``BY``.
        data: the directories of the binarised data on which choices are counted.
        subset: the set of it.
        sentences: how many of each pair; None: all.
        seed: of the random choice.
    """

    pairs: tuple[str, ...]
    experts: tuple[int, int] | None
    threshold: float
    metric: str
    by: str
    data: tuple[Path, ...]
    subset: str
    sentences: int | None
    seed: int


def prune(source: Source, scratch: Scratch, options: Options) -> Converted:
    """Prune a model.

    Raises:
        TaskMoEError: it has nothing to prune, or the data does not fit it.
        UsageError: the options do not fit the model.
    """
    checkpoint = Checkpoint.open(source.path)
    configs = [StackConfig.from_args(checkpoint.args, stack) for stack in STACKS]
    configs = [config for config in configs if config.moe_layers and config.routing == "token"]
    pairs = options.pairs or tuple(checkpoint.pairs)
    _check(checkpoint, configs, pairs, options)
    measured = [{}] * len(configs) if options.metric == RANDOM else _measure(checkpoint, configs, pairs, options)
    generator = torch.Generator().manual_seed(options.seed)
    model: dict[str, Tensor] = {}
    shapes, done = {}, []
    for config, activities in zip(configs, measured):
        restriction = _restrict(config, pairs, options, activities, generator)
        kept = {layer: restriction.experts_of(layer, pairs, config.langs) for layer in config.moe_layers}
        model |= dict(_tensors(source, scratch, config.stack, kept))
        shapes[config.stack] = _shape(config, kept, None if options.by == "model" else restriction)
        before = sum(map(config.expert_count, kept))
        done.append(f"{sum(map(len, kept.values()))} of {before} experts of the {config.stack}")
    cfg = source.cfg
    others = {stack: SubnetShape.of(cfg["model"], stack) or SubnetShape() for stack in STACKS}
    SubnetShape.write(cfg["model"], {**others, **shapes})
    model |= {name: source.kept(name, scratch) for name in source.tensors.names() if name not in model}
    return Converted(cfg, model, f"kept {' and '.join(done)} for {listed(pairs)}")


def _check(checkpoint: Checkpoint, configs: Sequence[StackConfig], pairs: Sequence[str], options: Options) -> None:
    path = checkpoint.path
    if not configs:
        raise TaskMoEError(
            f"{path}: no stack routes by token, so that tokens choose nothing; of other models, extract subnets"
        )
    if any(config.restriction is not None for config in configs):
        raise TaskMoEError(f"{path}: is pruned to languages already; give the checkpoint that it was made from")
    if any(config.language_experts for config in configs):
        raise TaskMoEError(
            f"{path}: was trained with --moe-language-experts, so that each language has experts of its own already; "
            "extract subnets"
        )
    for pair in pairs:
        if pair not in checkpoint.pairs:
            raise UsageError(f"--lang-pairs {pair}: {path} was not trained on it; it has {listed(checkpoint.pairs)}")
    if options.experts is not None and min(options.experts) < configs[0].top_k:
        raise UsageError(
            f"--experts {min(options.experts)}: a token of this model has {configs[0].top_k}; give at least as many"
        )


def _measure(
    checkpoint: Checkpoint, configs: Sequence[StackConfig], pairs: Sequence[str], options: Options
) -> list[Measured]:
    """How the tokens of each pair choose, in each stack."""
    references = References(checkpoint, options.data, pairs, options.subset, options.sentences)
    layers = [layer for config in configs for layer in getattr(references.model, config.stack).moe_layers]
    found: list[dict[str, dict[int, Activity]]] = [{} for _ in configs]
    for pair in pairs:
        with counted_choices(layers) as sums:
            references.run(pair)
        activities = map(Activity.of_sums, sums)
        for config, by_pair in zip(configs, found):
            by_pair[pair] = {layer: next(activities) for layer in config.moe_layers}
    return list(found)


def _restrict(
    config: StackConfig, pairs: tuple[str, ...], options: Options, measured: Measured, generator: torch.Generator
) -> Restriction:
    """What each task of a stack keeps. What all pairs share is made for one, and given to all."""
    by = BY[options.by]
    kind = "pair" if by is None else by[STACKS.index(config.stack)]
    table = TaskTable.build(kind, config.langs, pairs)
    task = {pair: int(table.lookup[tuple(config.langs.index(lang) + 1 for lang in split_pair(pair))]) for pair in pairs}
    groups = [[pair for pair in pairs if task[pair] == own] for own in range(len(table.names))]
    allowed = {}
    for layer in config.moe_layers:
        own = [_keep(config, layer, group, options, measured, generator) for group in (groups if by else [pairs])]
        allowed[layer] = tuple(own if by else own * len(groups))
    return Restriction(kind, pairs, allowed)


def _keep(
    config: StackConfig,
    layer: int,
    pairs: Sequence[str],
    options: Options,
    measured: Measured,
    generator: torch.Generator,
) -> tuple[int, ...]:
    """The experts of a layer that some pairs keep, by the mean of their activities."""
    if options.metric == RANDOM:
        worth = torch.rand(config.expert_count(layer), generator=generator)
    else:
        worth = METRICS[options.metric](Activity.mean([measured[pair][layer] for pair in pairs]))
    if options.experts is None:
        return best_beyond(worth, options.threshold, config.top_k)
    return best(worth, options.experts[STACKS.index(config.stack)])


def _shape(config: StackConfig, kept: Mapping[int, Sequence[int]], restriction: Restriction | None) -> SubnetShape:
    held = {layer: config.held_experts(layer) for layer in kept}
    experts = {layer: tuple(held[layer][place] for place in places) for layer, places in kept.items()}
    return SubnetShape((), experts, restriction and restriction.without(restriction.pairs, config.langs))


def _tensors(
    source: Source, scratch: Scratch, stack: str, kept: Mapping[int, Sequence[int]]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors that lose experts: all of a layer, the gate's too, have these as their first dimension."""
    for layer, places in kept.items():
        prefix = f"{stack}.layers.{layer}.moe."
        for name in source.tensors.names():
            if name.startswith(prefix):
                yield name, scratch.stack((source.tensors.expert(name, place) for place in places), len(places))
