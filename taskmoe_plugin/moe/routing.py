"""Routing: what one layer does with one batch, and the routers that decide it from activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskmoe_plugin.moe.assignments import Assignments, sort_assignments
from taskmoe_plugin.moe.gates import Choice, Gates, LinearGate, check_top_k, full_precision
from taskmoe_plugin.moe.groups import one_hot
from taskmoe_plugin.moe.tokens import Tokens

# Of more units a matrix of tokens and units is too large.
MANY_UNITS = 1024


@dataclass(frozen=True, kw_only=True)
class GateRecord:
    """What losses and statistics need to know of one pass through the gates of a layer.

    Attributes:
        gates: gates of U units.
        share: (U,) fp32, the share of tokens that each unit stands for; sums to 1 over all units.
        by_task: whether the units are tasks, whose share is that of all training data and not of the batch.
        load: (E,) fp32, the share of all assignments that each expert gets, where it is known of more than this batch.
        dropped: the share of the assignments that were dropped, a tensor where there is a capacity.
    """

    gates: Gates
    share: Tensor
    by_task: bool = False
    load: Tensor | None = None
    dropped: Tensor | float = 0.0


@dataclass(frozen=True, kw_only=True)
class Routing(GateRecord):
    """What one MoE layer does with one batch.

    Attributes:
        tokens: the tokens of the batch.
        experts: (N, K) int64, the experts of each token; where experts are merged, (N, 1), its network.
        weights: (N, K) fp32, their weights.
        assignments: the same, sorted by expert; before any capacity.
        counts: (W, E), the number of assignments that each of W processes has for each expert, where the host knows it;
            W is 1 where all experts are in one process.
        merging: (P, E) fp32, the weights with which the experts are merged to P networks; None: they are not.
    """

    tokens: Tokens
    experts: Tensor
    weights: Tensor
    assignments: Assignments
    counts: Sequence[Sequence[int]] | None = None
    merging: Tensor | None = None


def routings_of_units(
    gates: Gates,
    unit: Tensor,
    tokens: Tokens,
    share: Tensor,
    counts: Sequence[Sequence[Sequence[int]]] | None = None,
    by_task: bool = False,
) -> list[Routing]:
    """The routings of L layers in which the tokens of a unit share their experts.

    Args:
        gates: gates of U units in L layers, (L, U, …).
        unit: (N,) int64, the unit of each token.
        tokens: the tokens of the batch.
        share: (U,) fp32 summing to 1, the share of tokens that each unit stands for.
        counts: for each layer, what ``Routing.counts`` is.
        by_task: whether the units are tasks.
    """
    layers, units, k = gates.weights.shape
    with full_precision(tokens.device):
        by_unit = gates.weights.transpose(0, 1).reshape(units, layers * k)
        if units > MANY_UNITS:
            picked = by_unit.index_select(0, unit)
        else:
            # Backward is a matrix product too, one for all layers, which a GPU divides by tokens. That of indexing adds
            # up thousands of tokens in few rows, one by one.
            picked = torch.mm(one_hot(unit, units, gates.weights.dtype), by_unit)
        weights = picked.view(-1, layers, k).transpose(0, 1).contiguous().unbind(0)
    experts = gates.experts.index_select(1, unit)
    owners = _owners(gates).index_select(1, unit) if gates.sparse else experts
    assignments = sort_assignments(owners, gates.probs.size(-1), tokens.index).layers()
    chosen = experts.unbind(0)
    return [
        Routing(
            gates=each,
            share=share,
            by_task=by_task,
            tokens=tokens,
            experts=chosen[layer],
            weights=weights[layer],
            assignments=assignments[layer],
            counts=None if counts is None else counts[layer],
        )
        for layer, each in enumerate(gates.layers())
    ]


def _owners(gates: Gates) -> Tensor:
    """(…, U, K) int64, the experts; for a choice that is none, one that does not exist."""
    return gates.experts.masked_fill(gates.weights == 0, gates.probs.size(-1)) if gates.sparse else gates.experts


def merged_routings(
    gates: Gates,
    units: Tensor,
    network: Tensor,
    tokens: Tokens,
    share: Tensor,
    counts: Sequence[int] | None = None,
) -> list[Routing]:
    """The routings of L layers in which the experts are merged to one network for each task of the batch.

    Args:
        gates: gates of all U tasks in L layers, (L, U, …).
        units: (P,) int64, the tasks of the batch, whose networks are 0 to P - 1.
        network: (N,) int64, the network of each token.
        tokens: the tokens of the batch.
        share: (U,) fp32 summing to 1, the share of tokens that each task stands for.
        counts: (P,), the number of tokens of each network, where the host knows it.
    """
    merging = gates.shares.index_select(1, units).unbind(0)
    experts, weights = network.unsqueeze(1), torch.ones(network.size(0), 1, dtype=torch.float32, device=network.device)
    assignments = sort_assignments(experts, units.numel(), tokens.index)
    return [
        Routing(
            gates=each,
            share=share,
            by_task=True,
            tokens=tokens,
            experts=experts,
            weights=weights,
            assignments=assignments,
            counts=None if counts is None else [counts],
            merging=merging[layer],
        )
        for layer, each in enumerate(gates.layers())
    ]


class _LinearRouter(nn.Module):
    def __init__(
        self,
        width: int,
        experts: int,
        top_k: int,
        jitter: float = 0.0,
        choice: Choice | None = None,
    ) -> None:
        super().__init__()
        check_top_k(experts, top_k)
        self.top_k = top_k
        self.choice = Choice() if choice is None else choice
        self.gate = LinearGate(width, experts, jitter)

    def choose(self, logits: Tensor) -> Gates:
        """The gates of logits (…, U, E)."""
        return self.choice(logits, self.top_k, self.training)


class TokenRouter(_LinearRouter):
    """Each token chooses its experts by its own activation (Shazeer et al. 2017; GShard; Switch Transformer).

    Args:
        width: C.
        experts: E.
        top_k: K.
        jitter: see ``LinearGate``.
        choice: how tokens choose.
    """

    def forward(self, x: Tensor, tokens: Tokens) -> Routing:
        """Route flattened activations ``x`` (T·B, C)."""
        logits = self.gate(tokens.take(x))
        if tokens.candidates is not None:
            logits = tokens.candidates.restrict(logits, tokens.row)
        gates = self.choose(logits)
        count = tokens.row.numel()
        share = torch.full((count,), 1.0 / max(count, 1), dtype=torch.float32, device=x.device)
        return Routing(
            gates=gates,
            share=share,
            tokens=tokens,
            experts=gates.experts,
            weights=gates.weights,
            assignments=sort_assignments(_owners(gates), logits.size(-1), tokens.index),
        )


class SentenceRouter(_LinearRouter):
    """Each sentence chooses its experts by the mean of its tokens (TaskMoE, section 3.1).

    Args:
        width, experts, top_k, jitter, choice: as of ``TokenRouter``.
    """

    def forward(self, x: Tensor, tokens: Tokens) -> Routing:
        """Route flattened activations ``x`` (T·B, C)."""
        row, rows = tokens.row, tokens.rows
        # torch.bincount waits for a GPU to learn the largest.
        each = torch.ones(row.shape, dtype=torch.float32, device=x.device)
        count = each.new_zeros(rows).index_add(0, row, each)
        sentence = tokens.sentence
        if sentence is None:
            kept = tokens.take(x).float()
            sentence = kept.new_zeros(rows, x.size(1)).index_add(0, row, kept) / count.clamp(min=1).unsqueeze(1)
        gates = self.choose(self.gate(sentence).unsqueeze(0))
        (routing,) = routings_of_units(gates, row, tokens, count / max(row.numel(), 1))
        return routing
