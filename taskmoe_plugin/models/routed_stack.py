"""What encoder and decoder have in common: they route a batch for all their MoE layers before the first runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from fairseq.distributed import fsdp_wrap
from torch import Tensor, nn

from taskmoe_plugin.models.layers import RoutedLayer, StackLayer
from taskmoe_plugin.models.low_rank import LowRank
from taskmoe_plugin.models.stack import StackConfig
from taskmoe_plugin.models.task_candidates import TaskCandidates
from taskmoe_plugin.models.task_router import TaskRouter
from taskmoe_plugin.moe import FeedForward, GateRecord, Languages, MoELayer, Routing, Tokens


@dataclass(frozen=True)
class StackRouting:
    """What the MoE layers of a stack do with one batch.

    Attributes:
        layers: for each MoE layer, see ``LayerBatch.routing``.
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
        tasks: routes the batch, or tells which experts its tokens may choose; None where no layer has tasks.
        routed_layers: the Transformer layers that have an MoE layer, in order.
        low_rank: the low-rank language matrices; None where there are none.
    """

    moe_config: StackConfig
    tasks: TaskRouter | TaskCandidates | None
    low_rank: LowRank | None
    embed_tokens: nn.Embedding
    training: bool

    def prepare(self, args: Any, stack: str) -> None:
        """Before fairseq's ``__init__``: read the flags of the ``encoder`` or ``decoder`` stack."""
        self.moe_config = StackConfig.from_args(args, stack)
        self.routed_layers: list[RoutedLayer] = []
        self.low_rank = self.moe_config.build_low_rank()
        self._built = 0

    def next_layer(self) -> int:
        """The number of the layer that is being built."""
        index, self._built = self._built, self._built + 1
        return index

    def build_tasks(self) -> None:
        """After fairseq's ``__init__``: build the gates of tasks."""
        self.tasks = self.moe_config.build_tasks()
        if isinstance(self.tasks, TaskRouter) and self.tasks.merge:
            # Experts are independent at first, so that the variance of their weighted sum is Σ p² of that of one.
            with torch.no_grad():
                powers = self.tasks.gates().weights.square().sum(dim=-1).mean(dim=-1)
            for layer, power in zip(self.moe_layers, powers):
                layer.experts.scale_(power**-0.5)

    def complete(self, layer: StackLayer, cfg: Any) -> nn.Module:
        """Give a layer that has just been built low-rank matrices, if the model has them, and prepare it for FSDP."""
        if self.low_rank is not None:
            self.low_rank.install(layer)
            layer.languages = self.low_rank.current
        return fsdp_wrap(layer, min_num_params=cfg.min_params_to_wrap)  # type: ignore[no-any-return]

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
        it costs in a dense model, unless they keep their dropout.

        Args:
            padding: (B, T) bool, True at padding.
            src_lang_id, tgt_lang_id: (B,) int64, the languages of each row, where the choice of experts depends on it.
            filler: the batch is one that fairseq gives a process that has run out of batches, and counts for nothing.
                Where processes share experts, none of its tokens must reach them.
            sentence: (B, C), what sentence routing goes by; None: the mean of the row's tokens at the layer's input.

        Raises:
            ValueError: see ``TaskRouter`` and ``TaskCandidates``.
        """
        if filler and self.moe_config.group is not None:
            padding = torch.ones_like(padding)
        if not self.routed_layers:
            return StackRouting([], None)
        if not isinstance(self.tasks, TaskRouter):
            tokens = Tokens.from_padding(padding, sentence=sentence)
            if self.tasks is None:
                return StackRouting([tokens] * len(self.routed_layers), None)
            candidates = self.tasks(src_lang_id, tgt_lang_id)
            return StackRouting([replace(tokens, candidates=each) for each in candidates], None)
        batch = self.tasks(padding, src_lang_id, tgt_lang_id)
        task = batch.only_task
        experts = [layer.experts for layer in self.moe_layers]
        drops = self.training or experts[0].dropout_module.apply_during_inference
        if drops or task is None or self.moe_config.group is not None:
            return StackRouting(batch.routings(), batch.records())
        if batch.merge:
            networks = [own.merge(weights) for own, weights in zip(experts, batch.gates.shares[:, task])]
        else:
            weights = batch.gates.weights[:, task]
            chosen = batch.experts_of(task)
            networks = [own.fold(each, weights[i, : len(each)]) for i, (own, each) in enumerate(zip(experts, chosen))]
        return StackRouting(networks, batch.records())

    def languages(
        self, src_lang_id: Tensor | None, tgt_lang_id: Tensor | None, look: bool | None = None
    ) -> Languages | None:
        """The languages of a batch for low-rank matrices; None where there are none.

        In evaluation, where all rows have the same matrices, these are folded into the weights.

        Args:
            src_lang_id, tgt_lang_id: (B,) int64.
            look: whether to find out if they are; by default in evaluation.

        Raises:
            ValueError: there are no language ids.
        """
        if self.low_rank is None:
            return None
        if src_lang_id is None or tgt_lang_id is None:
            raise ValueError("low-rank matrices need the languages of the rows: set --source-lang and --target-lang")
        look = not self.training if look is None else look
        dtype = self.embed_tokens.weight.dtype
        factors = self.moe_config.low_rank_factors(src_lang_id, tgt_lang_id)
        return Languages.of_rows(*factors, len(self.moe_config.langs), dtype, look)

    @contextmanager
    def routed(self, routing: StackRouting, languages: Languages | None) -> Iterator[list[GateRecord]]:
        """Within the context the layers compute a batch; the list has the records of those that ran afterwards."""
        records: list[GateRecord] = []
        batches = [layer.batch for layer in self.routed_layers]
        for batch, each in zip(batches, routing.layers):
            batch.routing, batch.record = each, None
        try:
            with nullcontext() if self.low_rank is None else self.low_rank.current.set(languages):
                yield records
            found = routing.records or [batch.record for batch in batches if batch.record is not None]
            records.extend(found)
        finally:
            for batch in batches:
                batch.routing = batch.record = None

    def set_training_tokens(self, pair_tokens: Mapping[tuple[int, int], int]) -> None:
        """Tell the gates of tasks the tokens of each (source language id, target language id)."""
        if isinstance(self.tasks, TaskRouter):
            self.tasks.set_training_tokens(pair_tokens)
