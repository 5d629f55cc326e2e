"""Gates: which experts a unit uses, and with what weights.

A *unit* is what chooses together: a task, a sentence or a token. All gates are computed in fp32 under any precision of
the model, automatic mixed precision included (Switch Transformer, section 2.4).
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Within the context automatic mixed precision leaves everything in the type it has."""
    # The meta device has no mixed precision. Where it is off there is nothing to do, which a GPU need not wait for.
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@dataclass(frozen=True)
class Gates:
    """The choice of experts for U units, perhaps in several layers at once.

    Attributes:
        logits: (…, U, E) fp32; None where the choice is fixed rather than learned.
        probs: (…, U, E) fp32, their softmax.
        experts: (…, U, K) int64, the chosen experts, best first.
        weights: (…, U, K) fp32, what each chosen expert's output is multiplied by.
        sparse: whether units have different numbers of experts: the last choices of some have weight 0, and are none.
    """

    logits: Tensor | None
    probs: Tensor
    experts: Tensor
    weights: Tensor
    sparse: bool = False

    @property
    def shares(self) -> Tensor:
        """(…, U, E) fp32, the weights of all experts, 0 for those that are not chosen."""
        # A choice that is none may name an expert that another one names.
        return torch.zeros_like(self.probs).scatter_add(-1, self.experts, self.weights)

    def layers(self) -> list[Gates]:
        """The gates of each of L layers, where all four tensors have L as their first dimension."""
        parts = zip(self.probs.unbind(0), self.experts.unbind(0), self.weights.unbind(0))
        logits = [None] * self.probs.size(0) if self.logits is None else self.logits.unbind(0)
        return [Gates(each, *rest, self.sparse) for each, rest in zip(logits, parts)]


def top_k_gates(logits: Tensor, k: int, scale: float = 1.0, threshold: float = 0.0) -> Gates:
    """Choose the k best experts of each unit.

    For k > 1 the softmax probabilities of the chosen experts are renormalised to sum to 1 (GShard, algorithm 1), which
    is the softmax of their logits.
    For k = 1 the probability itself is the weight (Switch Transformer, equation 2): renormalised it would be the
    constant 1, and the translation loss would have no gradient with respect to the gate.

    Args:
        logits: (…, U, E) fp32.
        k: experts per unit, 1 <= k <= E.
        scale: all weights are multiplied by it (the route scale of DeepSeek-V2, section 2.1.2, and torchtitan).
        threshold: a unit has as many of its k best experts as their probabilities, which are its weights as they are,
            need to sum to this (XMoE, Yang et al. 2024); 0: all k.
    """
    probs = logits.softmax(dim=-1)
    best, experts = (probs if threshold or k == 1 else logits).topk(k, dim=-1)
    if threshold:
        enough = best.cumsum(dim=-1) - best >= threshold
        weights = best.masked_fill(enough, 0.0)
    else:
        weights = best if k == 1 else best.softmax(dim=-1)
    return Gates(logits, probs, experts, weights if scale == 1 else weights * scale, sparse=threshold > 0)


@dataclass(frozen=True)
class Choice:
    """How units choose, besides how many experts.

    Attributes:
        scale, threshold: see ``top_k_gates``.
        dense_training: in training every unit has all experts, with their probabilities as weights, so that all gates
            and experts learn from every token; in evaluation the K best, whose weights are renormalised (DS-MoE, Pan et
            al. 2024, section 3.1).
    """

    scale: float = 1.0
    threshold: float = 0.0
    dense_training: bool = False

    def __call__(self, logits: Tensor, k: int, training: bool) -> Gates:
        """The gates of logits (…, U, E) for k experts a unit."""
        if not self.dense_training:
            return top_k_gates(logits, k, self.scale, self.threshold)
        gates = top_k_gates(logits, logits.size(-1) if training else k, self.scale)
        # With one expert top_k_gates keeps the probability: there is nothing that it would have to learn from here.
        return (
            gates if gates.experts.size(-1) > 1 else replace(gates, weights=torch.full_like(gates.weights, self.scale))
        )


def check_top_k(experts: int, top_k: int) -> None:
    """Refuse a number of experts per token that is not possible.

    Raises:
        ValueError: it is not between 1 and the number of experts.
    """
    if not 1 <= top_k <= experts:
        raise ValueError(f"top-k must be between 1 and the number of experts: k = {top_k}, experts = {experts}")


class LinearGate(nn.Module):
    """A linear gate without bias that scores activations: logits (U, E) = inputs (U, C) · weight (E, C)ᵀ, in fp32.

    Args:
        width: C, the width of its input.
        experts: E.
        jitter: in training the input is multiplied by uniform noise from [1 - jitter, 1 + jitter]
            (Switch Transformer, section 2.2 and table 11).
    """

    def __init__(self, width: int, experts: int, jitter: float = 0.0) -> None:
        super().__init__()
        # Layer-normalised inputs have variance 1, so this keeps the first logits near 0: Switch's scale of 0.1.
        self.weight = nn.Parameter(_truncated_normal((experts, width), std=(0.1 / width) ** 0.5))
        self.jitter = jitter

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            x = x.float()
            if self.training and self.jitter > 0:
                x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
            return F.linear(x, self.weight.float())


def _truncated_normal(shape: tuple[int, ...], std: float) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(shape), std=std, a=-2 * std, b=2 * std)


def block_edges(experts: int, blocks: int) -> Tensor:
    """(blocks + 1,) int64: block j of consecutive experts begins at edge j and ends before edge j + 1."""
    return torch.arange(blocks + 1) * experts // blocks


def deal(tasks: int, experts: int, top_k: int) -> Tensor:
    """(tasks, K) int64: experts dealt to tasks in turn, one from each of K blocks of consecutive experts.

    A task's experts are far apart: they belong to different processes where experts are spread, and a task with many
    tokens keeps all of these busy. Whenever it has been dealt, block j moves on by j places, so that (for K > 1, and E
    divisible by K) no two of the first (E/K)² tasks share all their experts.
    """
    edges = block_edges(experts, top_k)
    size, task, block = edges.diff(), torch.arange(tasks).unsqueeze(1), torch.arange(top_k)
    return edges[:-1] + (task + block * (task // size)) % size


@dataclass(frozen=True)
class Warmup:
    """How many experts a task has in the first updates: more than K, and by the same factor fewer in equal times.

    Attributes:
        updates: after so many it has K.
        start: with how many it begins.
    """

    updates: int
    start: int

    def top_k(self, k: int, num_updates: int) -> int:
        """The experts of a task after so many updates; ``k`` at the end, at least."""
        left = max(0.0, 1 - num_updates / self.updates)
        # What rounding adds to a whole number is no expert.
        return max(k, math.ceil(k * math.pow(self.start / k, left) - 1e-6))


class TaskGates(nn.Module):
    """Each task chooses its experts, in each layer: the gate scores a learned embedding of the task (TaskMoE, 3.1).

    The gates of all L layers of a stack are one module, for they depend on nothing that a layer computes: logits
    (L, U, E) = embedding (L, U, M) · weight (L, E, M)ᵀ / M + head start.

    Every task begins with the experts that are dealt to it, a head start ahead of the others and of nearly equal
    weights. From there the gate learns slowly: its scores are divided by M, the width of the embedding, for Adam moves
    each weight by about the learning rate, and would move their sum by M times that. Gates that move faster converge to
    one expert of the k, or exchange experts before these have learnt anything.

    With k = 1 the weight is the probability divided by the one that a dealt expert begins with, so that a layer begins
    where a dense one does, however many experts there are.

    With a warm-up no expert is dealt. A task begins with more experts than k and nearly equal scores, and loses the one
    that it weighs least whenever their number falls: from dense to sparse, as the gate of EvoMoE does for tokens (Nie
    et al. 2021, 2112.14397). What two tasks share in the end is then what they have learnt to share, and not what was
    dealt.

    Args:
        layers: L.
        tasks: U.
        width: M.
        experts: E.
        top_k: K.
        jitter: in training the embeddings are multiplied by uniform noise from [1 - jitter, 1 + jitter]. It depends on
            nothing but the number of updates and ``seed``: all processes have the same, and count the same assignments.
        seed: tells the noise of one stack from that of another.
        choice: how tasks choose. With dense training there is no head start.
        ahead: the head start.
        warmup: how the number of experts falls to K in training, for K > 1; None: it is K from the beginning.
    """

    HEAD_START = 2.0
    head_start: Tensor

    def __init__(
        self,
        layers: int,
        tasks: int,
        width: int,
        experts: int,
        top_k: int,
        jitter: float = 0.0,
        seed: int = 0,
        choice: Choice | None = None,
        ahead: float = HEAD_START,
        warmup: Warmup | None = None,
    ) -> None:
        super().__init__()
        check_top_k(experts, top_k)
        if warmup is not None:
            check_top_k(experts, warmup.start)
        self.top_k = top_k
        self.warmup = warmup
        self.ahead = ahead
        self.choice = Choice() if choice is None else choice
        self.jitter = jitter
        self.seed = seed
        self.num_updates = 0
        self.embedding = nn.Parameter(torch.randn(layers, tasks, width))
        self.weight = nn.Parameter(_truncated_normal((layers, experts, width), std=1.0))
        dealt = deal(tasks, experts, top_k)
        ahead = 0.0 if self.choice.dense_training or warmup is not None else ahead
        self.register_buffer("head_start", torch.zeros(tasks, experts).scatter(1, dealt, ahead))

    def set_num_updates(self, num_updates: int) -> None:
        """Be told how many updates there have been; fairseq calls this before each."""
        self.num_updates = num_updates

    def forward(self) -> Gates:
        """The gates of all tasks in all layers, (L, U, …)."""
        with full_precision(self.weight.device):
            embedding, weight = self.embedding.float(), self.weight.float()
            if self.training and self.jitter > 0:
                embedding = embedding * self._noise(embedding)
            head_start, scale = self.head_start.float(), 1 / embedding.size(-1)
            logits = torch.baddbmm(head_start, embedding, weight.transpose(1, 2), alpha=scale)
            k = self.top_k
            if self.warmup is not None and self.training:
                k = self.warmup.top_k(k, self.num_updates)
            gates = self.choice(logits, k, self.training)
            if k > 1 or self.choice.dense_training:
                return gates
            first = 1 / (1 + (logits.size(-1) - 1) * math.exp(-self.ahead))
            return Gates(logits, gates.probs, gates.experts, gates.weights / first)

    def _noise(self, like: Tensor) -> Tensor:
        generator = torch.Generator(like.device).manual_seed(2 * self.num_updates + self.seed)
        return torch.empty_like(like).uniform_(1 - self.jitter, 1 + self.jitter, generator=generator)


class MergingTaskGates(nn.Module):
    """Each task has weights with which the experts of each layer are merged to its network: a table of logits.

    Every task's tokens reach every chosen expert, so the gate learns from all of them and may move fast: its logits are
    ``LOGIT_SCALE`` times the parameters, which Adam moves by about the learning rate. They begin as draws from N(0, 1):
    tasks with even weights would all have one network, and all experts one gradient.

    Args:
        layers: L.
        tasks: U.
        experts: E.
        top_k: K, how many experts are merged; their weights are renormalised to sum to 1.
    """

    LOGIT_SCALE = 3.0

    def __init__(self, layers: int, tasks: int, experts: int, top_k: int) -> None:
        super().__init__()
        check_top_k(experts, top_k)
        self.top_k = top_k
        self.table = nn.Parameter(torch.randn(layers, tasks, experts) / self.LOGIT_SCALE)

    def forward(self) -> Gates:
        """The gates of all tasks in all layers, (L, U, …)."""
        with full_precision(self.table.device):
            gates = top_k_gates(self.LOGIT_SCALE * self.table.float(), self.top_k)
            # Of one expert the weight is 1: it is a network of its own.
            return gates if self.top_k > 1 else replace(gates, weights=torch.ones_like(gates.weights))


class FixedTaskGates(nn.Module):
    """Each task has given experts with given weights, loaded with the model: gates that are done learning.

    Args:
        layers: L.
        tasks: U.
        experts: E.
        top_k: K.
        sparse: whether some tasks have fewer, see ``Gates``.
        persistent: whether checkpoints have them.
    """

    experts: Tensor
    weights: Tensor

    def __init__(
        self, layers: int, tasks: int, experts: int, top_k: int, sparse: bool = False, persistent: bool = True
    ) -> None:
        super().__init__()
        check_top_k(experts, top_k)
        self.num_experts = experts
        self.sparse = sparse
        self.register_buffer("experts", torch.zeros(layers, tasks, top_k, dtype=torch.int64), persistent)
        self.register_buffer("weights", torch.zeros(layers, tasks, top_k), persistent)

    def forward(self) -> Gates:
        """The gates of all tasks in all layers, (L, U, …)."""
        weights = self.weights.float()
        # A choice that is none may name an expert that another one names.
        probs = weights.new_zeros(*weights.shape[:2], self.num_experts).scatter_add(2, self.experts, weights)
        return Gates(None, probs, self.experts, weights, self.sparse)


class StaticTaskGates(FixedTaskGates):
    """Each task has the experts that are dealt to it, with equal weights: the Static MoE of TaskMoE, section 5.1.

    Args:
        layers, tasks, experts, top_k: as of ``FixedTaskGates``.
        scale: all weights are multiplied by it.
    """

    def __init__(self, layers: int, tasks: int, experts: int, top_k: int, scale: float = 1.0) -> None:
        super().__init__(layers, tasks, experts, top_k)
        self.experts.copy_(deal(tasks, experts, top_k))
        self.weights.fill_(scale / top_k)
