"""Which experts the language pairs use where a stack routes by sentence or token: found by running the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from taskmoe_plugin.models.stack import StackConfig
from taskmoe_plugin.moe import Usage, counted_usage
from taskmoe_plugin.report.usage import StackUsage
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.decoders import BATCH, FairseqDecoder, build_model, build_task
from taskmoe_plugin.subnet.verify import Sentences, read_sentences
from taskmoe_plugin.subnet.vocabulary import DictionaryReader


def measured_usage(
    checkpoint: Checkpoint,
    stacks: dict[str, tuple[StackConfig, list[int]]],
    data: Sequence[Path],
    subset: str,
    count: int | None,
) -> list[StackUsage]:
    """The usage of stacks by the language pairs, over sentences and their references.

    Args:
        checkpoint: the model.
        stacks: configurations of the stacks and indices of their MoE layers.
        data: the directories of the binarised data.
        subset: the set that the sentences are from, e.g. valid.
        count: sentences of each pair, evenly spaced; None: all.

    Raises:
        TaskMoEError: a pair has no such set, or the data's dictionaries do not fit the model.
    """
    reader = DictionaryReader(checkpoint, data)
    sentences = {pair: _sentences(reader, data, subset, pair, count) for pair in checkpoint.pairs}
    tasks = {pair: build_task(checkpoint.cfg["task"], checkpoint.args.arch, data[0], pair) for pair in sentences}
    model = build_model(checkpoint.args, tasks[checkpoint.pairs[0]], checkpoint.tensors.all())
    layers = [layer for stack in stacks for layer in getattr(model, stack).moe_layers]
    totals = [torch.zeros(len(sentences), layer.num_experts, 2) for layer in layers]
    progress = tqdm(sentences.items(), desc=subset, unit=" pairs", delay=1, leave=False, disable=None)
    for row, (pair, each) in enumerate(progress):
        with counted_usage(layers, torch.full((BATCH,), row), len(sentences)) as sums:
            FairseqDecoder(tasks[pair], model).score(each.sources, each.targets)
        for total, found in zip(totals, sums):
            total += found
    by_layer = iter(totals)
    return [
        StackUsage(
            config, tuple(sentences), {index: Usage.of_counts(next(by_layer), config.top_k) for index in indices}
        )
        for config, indices in stacks.values()
    ]


def _sentences(reader: DictionaryReader, data: Sequence[Path], subset: str, pair: str, count: int | None) -> Sentences:
    vocabularies = reader.read([pair])
    return read_sentences(data, subset, pair, vocabularies, count)
