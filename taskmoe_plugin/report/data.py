"""Which experts the language pairs use where a stack routes by sentence or token: found by running the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from taskmoe_plugin.models.stack import StackConfig
from taskmoe_plugin.moe import Usage, counted_usage
from taskmoe_plugin.report.usage import StackUsage
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.decoders import BATCH
from taskmoe_plugin.subnet.references import References


def measured_usage(
    checkpoint: Checkpoint,
    stacks: Sequence[StackConfig],
    data: Sequence[Path],
    subset: str,
    count: int | None,
) -> list[StackUsage]:
    """The usage of stacks by the language pairs, over sentences and their references.

    Args:
        checkpoint: the model.
        stacks: configurations of the stacks.
        data: the directories of the binarised data.
        subset: the set that the sentences are from, e.g. valid.
        count: sentences of each pair, evenly spaced; None: all.

    Raises:
        TaskMoEError: a pair has no such set, or the data's dictionaries do not fit the model.
    """
    pairs = checkpoint.pairs
    references = References(checkpoint, data, pairs, subset, count)
    layers = [layer for config in stacks for layer in getattr(references.model, config.stack).moe_layers]
    places = [(config, index) for config in stacks for index in config.moe_layers]
    # A pruned layer has not all of its experts, which keep their numbers.
    totals = [torch.zeros(len(pairs), config.experts, 2) for config, _ in places]
    for row, pair in enumerate(pairs):
        with counted_usage(layers, torch.zeros(BATCH, dtype=torch.int64), 1) as sums:
            references.run(pair)
        for total, found, (config, index) in zip(totals, sums, places):
            total[row, list(config.held_experts(index))] += found[0]
    by_layer = iter(totals)
    return [
        StackUsage(
            config,
            tuple(pairs),
            {index: Usage.of_counts(next(by_layer), config.top_k) for index in config.moe_layers},
            measured=True,
        )
        for config in stacks
    ]
