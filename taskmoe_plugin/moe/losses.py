"""Losses and statistics of gates.

Every function takes the gates of U units and the share of tokens each unit stands for, so that one formula serves
tasks (shares over all training data), sentences and tokens. All compute in fp32, under mixed precision too: a balanced
gate's probabilities, summed over 65,536 tokens, are beyond what fp16 holds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskmoe_plugin.moe.gates import Gates, full_precision

EPSILON = 1e-8


def expert_load(gates: Gates, share: Tensor) -> Tensor:
    """(E,) fp32 summing to 1, the share of all assignments that each expert gets. Has no gradient.

    Where units have different numbers of experts, their first choices count alone, as in XMoE: further ones are free.

    Args:
        gates: gates of U units.
        share: (U,) fp32, share of tokens of each unit, summing to 1.
    """
    load = torch.zeros(gates.probs.size(1), dtype=torch.float32, device=share.device)
    experts = gates.experts[:, :1] if gates.sparse else gates.experts
    k = experts.size(1)
    return load.index_add(0, experts.reshape(-1), share.repeat_interleave(k) / k)


def balance_loss(gates: Gates, share: Tensor, load: Tensor | None = None) -> Tensor:
    """Load-balancing loss, scalar fp32: E · Σ_i f_i · P_i (Switch Transformer, equations 4 to 6, without α).

    f_i is the share of assignments that expert i gets, P_i the mean probability it is given. 1 when balanced; its
    gradient reaches the gate through P alone.

    Args:
        gates: gates of U units.
        share: (U,) fp32, share of tokens of each unit.
        load: (E,) fp32, the f_i, where they are of more than these units.
    """
    load = expert_load(gates, share) if load is None else load
    with full_precision(share.device):
        return (load * (share @ gates.probs)).sum() * load.numel()


def z_loss(gates: Gates, share: Tensor) -> Tensor:
    """Router z-loss, scalar fp32: mean over tokens of the squared log-sum-exp of the logits (ST-MoE, equation 5)."""
    if gates.logits is None:
        return torch.zeros((), dtype=torch.float32, device=share.device)
    return (share * gates.logits.logsumexp(dim=-1).square()).sum()


def gate_entropy(gates: Gates, share: Tensor) -> Tensor:
    """Mean over tokens of the entropy of a unit's probabilities, in nats: 0 when certain, ln E when indifferent."""
    entropy: Tensor = torch.special.entr(gates.probs).sum(dim=-1)
    return (share * entropy).sum()


def mutual_information_loss(gates: Gates, share: Tensor) -> Tensor:
    """Minus the mutual information of expert and token, in nats, scalar fp32 (DS-MoE, Pan et al. 2024, section 3.2).

    H(expert | token) - H(expert): smallest where each unit is certain of its experts and all units together use all
    experts equally. Of units that stand for a part of all tokens only it is that part's value, times its size.
    """
    size = share.sum()
    with full_precision(share.device):
        mean = (share / size.clamp(min=EPSILON)) @ gates.probs
    return (share * _entropy(gates.probs)).sum() - size * _entropy(mean)


def _entropy(probs: Tensor) -> Tensor:
    # Of experts that a unit may not choose the probability is 0, and the logarithm's gradient would not be finite.
    return -(probs * (probs + EPSILON).log()).sum(dim=-1)


def experts_in_use(gates: Gates, share: Tensor, load: Tensor | None = None) -> Tensor:
    """Share of the experts that get any token, scalar fp32 in [0, 1]."""
    return ((expert_load(gates, share) if load is None else load) > 0).float().mean()
