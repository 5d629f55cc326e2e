"""``moefy``: a dense Transformer whose feed-forward networks are cut into experts, of which each language keeps some.

MoEfication: Transformer Feed-forward Layers are Mixtures of Experts (Zhang et al., Findings of ACL 2022). Nothing is
trained. With all experts it computes exactly what it did; with the few that carry most of a language's activation it is
a smaller model of that language.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from taskmoe_plugin.convert.clusters import balanced_clusters
from taskmoe_plugin.convert.conversion import Converted
from taskmoe_plugin.convert.dense import sparse_cfg
from taskmoe_plugin.convert.source import Source
from taskmoe_plugin.convert.unit_mass import counted_mass
from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.models.config import STACKS
from taskmoe_plugin.models.stack import StackConfig
from taskmoe_plugin.models.task_table import split_pair
from taskmoe_plugin.moe.fold import PARTS
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.references import References
from taskmoe_plugin.subnet.scratch import Scratch


@dataclass(frozen=True)
class Options:
    """How networks are cut.

    Attributes:
        experts: E, a divisor of the width of the networks.
        keep: how many of them each language keeps; None: all.
        data: the directories of the binarised data on which activations are summed up.
        subset: the set of it.
        sentences: how many of each pair; None: all.
        seed: of the clustering.
    """

    experts: int
    keep: int | None
    data: tuple[Path, ...]
    subset: str
    sentences: int | None
    seed: int


def moefy(source: Source, scratch: Scratch, options: Options) -> Converted:
    """Cut the feed-forward networks of a dense model into experts.

    Raises:
        TaskMoEError: the model has experts already, or the data does not fit it.
        UsageError: the options do not fit the model.
    """
    source.require(dense=True, remedy="its networks are cut already")
    cfg = sparse_cfg(source, _flags(source, options))
    args = cfg["model"]
    configs = [StackConfig.from_args(args, stack) for stack in STACKS]
    blocks = {name: _blocks(source, name, options) for config in configs for name in _layers(config)}
    mass = {} if options.keep is None else _measure(source, configs, options)
    model: dict[str, Tensor] = {}
    for config in configs:
        for name in _layers(config):
            model |= dict(_experts(source, scratch, name, blocks[name], config.top_k))
        chosen = [_choose(config, blocks[name], mass.get(name)) for name in _layers(config)]
        model |= _gates(config, torch.stack(chosen))
    cut = {f"{name}.{part}" for name in blocks for part in PARTS}
    model |= {name: source.kept(name, scratch) for name in source.tensors.names() if name not in cut}
    done = f"cut {len(blocks)} networks into {options.experts} experts each, of which a language has {args.moe_top_k}"
    return Converted(cfg, model, done)


def _flags(source: Source, options: Options) -> dict[str, object]:
    before = source.state["cfg"]["model"]
    widths = {getattr(before, f"{stack}_ffn_embed_dim") for stack in STACKS}
    if len(widths) > 1:
        raise UsageError(
            f"{source.path}: the networks of encoder and decoder differ in width, and experts cannot; give a model in "
            "which they are the same"
        )
    width = widths.pop()
    if options.experts < 2 or width % options.experts:
        raise UsageError(f"--experts {options.experts}: give a divisor, from 2 up, of {width}, the networks' width")
    if options.keep is not None and not 1 <= options.keep <= options.experts:
        raise UsageError(f"--keep {options.keep}: give between 1 and --experts, which is {options.experts}")
    keep = options.experts if options.keep is None else options.keep
    return {
        "moe_freq": 1, "moe_expert_count": options.experts, "moe_top_k": keep, "moe_route_scale": float(keep),
        "moe_expert_ffn_dim": width // options.experts, "moe_task_gate": "static",
        "encoder_moe_routing": "source", "decoder_moe_routing": "target",
    }  # fmt: skip


def _layers(config: StackConfig) -> list[str]:
    return [f"{config.stack}.layers.{layer}" for layer in config.moe_layers]


def _blocks(source: Source, layer: str, options: Options) -> Tensor:
    return balanced_clusters(source.tensors.tensor(f"{layer}.fc1.weight"), options.experts, options.seed)


def _measure(source: Source, configs: Sequence[StackConfig], options: Options) -> dict[str, Tensor]:
    """(U, F) for each layer: what its hidden units put out over the tokens of each language."""
    checkpoint = Checkpoint(source.path, sparse_cfg(source, {"moe_freq": 0}), [], source.tensors)
    references = References(checkpoint, options.data, checkpoint.pairs, options.subset, options.sentences)
    found: dict[str, Tensor] = {}
    for pair in checkpoint.pairs:
        with counted_mass(references.model.encoder) as encoder, counted_mass(references.model.decoder) as decoder:
            references.run(pair)
        for config, lang, masses in zip(configs, split_pair(pair), (encoder, decoder)):
            assert config.table is not None
            names = config.table.names
            for layer, own in zip(_layers(config), masses):
                found.setdefault(layer, own.new_zeros(len(names), own.numel()))[names.index(lang)] += own
    return found


def _choose(config: StackConfig, blocks: Tensor, mass: Tensor | None) -> Tensor:
    """(U, K) int64, the experts of each language: those with most of the mass (U, F), best first."""
    assert config.table is not None
    if mass is None:
        return torch.arange(config.top_k).expand(len(config.table.names), -1)
    return mass[:, blocks].sum(dim=2).topk(config.top_k, dim=1).indices


def _experts(source: Source, scratch: Scratch, layer: str, blocks: Tensor, k: int) -> Iterator[tuple[str, Tensor]]:
    """The experts of a layer: the hidden units of each block, and of the last bias one k-th, for k are summed up."""
    dense = {part: source.tensors.tensor(f"{layer}.{part}") for part in PARTS}
    parts: dict[str, Callable[[Tensor], Tensor]] = {
        "fc1.weight": lambda block: dense["fc1.weight"][block],
        "fc1.bias": lambda block: dense["fc1.bias"][block],
        "fc2.weight": lambda block: dense["fc2.weight"][:, block],
        "fc2.bias": lambda block: dense["fc2.bias"] / k,
    }
    for part, take in parts.items():
        stacked = scratch.stack(map(take, blocks), len(blocks))
        yield f"{layer}.moe.experts.{part.replace('.', '_')}", stacked


def _gates(config: StackConfig, experts: Tensor) -> dict[str, Tensor]:
    """The gates of a stack: the experts (L, U, K) of each language, each with weight 1."""
    tasks = config.build_tasks()
    assert tasks is not None
    tensors = {f"{config.stack}.tasks.{name}": each for name, each in tasks.state_dict().items()}
    prefix = f"{config.stack}.tasks.gates."
    return {**tensors, prefix + "experts": experts.contiguous(), prefix + "weights": torch.ones(experts.shape)}
