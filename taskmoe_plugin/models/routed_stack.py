"""What encoder and decoder have in common: they route a batch for all their MoE layers before the first runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taskmoe_plugin.models.layers import RoutedLayer
from taskmoe_plugin.models.restricted_rows import RestrictedRows
from taskmoe_plugin.models.stack import StackConfig
from taskmoe_plugin.models.task_router import TaskRouter
from taskmoe_plugin.moe import FeedForward, GateRecord, MoELayer, Routing, Tokens


@dataclass(frozen=True)
class StackRouting:
    """What the MoE layers of a stack do with one batch.

    Attributes:
        layers: for each MoE layer, see ``RoutedLayer.routing``.
        records: what losses and statistics need, where it is known before any layer runs.
    """

    layers: Sequence[Routing | Tokens | FeedForward]
    records: list[GateRecord] | None

    @property
    def is_folded(self) -> bool:
        """Whether all tokens use one network in each layer, so that the next tokens of the batch can use it too."""
        return bool(self.layers) and all(isinstance(each, FeedForward) for each in self.layers)


class RoutedStack:
    """Mixed into fairseq's encoder and decoder, which build their layers in ``__init__``, one call each, unnumbered.

    Attributes:
        moe_config: the stack's flags.
        tasks: routes the batch; None where no layer routes by task.
        restricted: tells which experts the tokens of each row may choose; None: any.
        routed_layers: the Transformer layers that have an MoE layer, in order.
    """

    moe_config: StackConfig
    tasks: TaskRouter | None
    restricted: RestrictedRows | None
    training: bool

    def prepare(self, args: Any, stack: str) -> None:
        """Before fairseq's ``__init__``: read the flags of the ``encoder`` or ``decoder`` stack."""
        self.moe_config = StackConfig.from_args(args, stack)
        self.routed_layers: list[RoutedLayer] = []
        self._built = 0

    def next_layer(self) -> int:
        """The number of the layer that is being built."""
        index, self._built = self._built, self._built + 1
        return index

    def build_tasks(self) -> None:
        """After fairseq's ``__init__``: build the gates of tasks."""
        self.tasks = self.moe_config.build_tasks()
        if self.tasks is not None and self.moe_config.merge:
            # Experts are independent at first, so that the variance of their weighted sum is Σ p² of that of one.
            with torch.no_grad():
                powers = self.tasks.gates().weights.square().sum(dim=-1).mean(dim=-1)
            for layer, power in zip(self.moe_layers, powers):
                layer.experts.scale_(power**-0.5)

    @property
    def moe_layers(self) -> list[MoELayer]:
        """The MoE layers, in order."""
        return [layer.moe for layer in self.routed_layers]

    def route(
        self,
        padding: Tensor,
        src_lang_id: Tensor | None,
        tgt_lang_id: Tensor | None,
        filler: bool = False,
        sentence: Tensor | None = None,
    ) -> StackRouting:
        """Route a batch.

        In evaluation, where all tokens share a task, its experts are made one network for each layer, which costs what
        it costs in a dense model.

        Args:
            padding: (B, T) bool, True at padding.
            src_lang_id, tgt_lang_id: (B,) int64, the languages of each row, where the choice of experts depends on it.
            filler: the batch is one that fairseq gives a process that has run out of batches, and counts for nothing.
                Where processes share experts, none of its tokens must reach them.
            sentence: (B, C), what sentence routing goes by; None: the mean of the row's tokens at the layer's input.

        Raises:
            ValueError: see ``TaskRouter`` and ``RestrictedRows``.
        """
        if filler and self.moe_config.group is not None:
            padding = torch.ones_like(padding)
        if self.tasks is None:
            count = len(self.routed_layers)
            task = None if self.restricted is None else self.restricted(src_lang_id, tgt_lang_id)
            tokens = Tokens.from_padding(padding, sentence=sentence, task=task) if count else None
            return StackRouting([tokens] * count if tokens else [], None)
        batch = self.tasks(padding, src_lang_id, tgt_lang_id)
        task = batch.only_task
        if self.training or task is None or self.moe_config.group is not None:
            return StackRouting(batch.routings(), batch.records())
        experts = [layer.experts for layer in self.moe_layers]
        if batch.merge:
            networks = [own.merge(weights) for own, weights in zip(experts, batch.gates.shares[:, task])]
        else:
            weights = batch.gates.weights[:, task]
            chosen = [each[task] for each in batch.experts]
            networks = [own.fold(each, weights[i, : len(each)]) for i, (own, each) in enumerate(zip(experts, chosen))]
        return StackRouting(networks, batch.records())

    @contextmanager
    def routed(self, routing: StackRouting) -> Iterator[list[GateRecord]]:
        """Within the context the layers route a batch; the list has the records of those that ran afterwards."""
        records: list[GateRecord] = []
        for layer, each in zip(self.routed_layers, routing.layers):
            layer.routing, layer.record = each, None
        try:
            yield records
            found = routing.records or [layer.record for layer in self.routed_layers if layer.record is not None]
            records.extend(found)
        finally:
            for layer in self.routed_layers:
                layer.routing = layer.record = None

    def set_training_tokens(self, pair_tokens: Mapping[tuple[int, int], int]) -> None:
        """Tell the gates of tasks the tokens of each (source language id, target language id)."""
        if self.tasks is not None:
            self.tasks.set_training_tokens(pair_tokens)
