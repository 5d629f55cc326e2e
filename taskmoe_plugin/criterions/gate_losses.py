"""Losses and statistics of the gates, of one process's batch or of the batches of all processes as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fairseq.distributed import utils as distributed_utils
from torch import Tensor

from taskmoe_plugin.moe import MoERecord, expert_load, gate_entropy, load_balance, z_loss

STATISTICS = ("balance_loss", "z_loss", "gate_entropy", "experts_in_use", "dropped")
SCALARS = 3


def token_means(record: MoERecord) -> Tensor:
    """(2E + 3,) fp32: what the statistics of a layer are made of.

    First the load of each expert, then the mean probability of each, then z-loss, entropy, and share dropped. Each is
    a mean over tokens, so the mean over several batches is the mean of theirs, weighted by their tokens.
    """
    gates, share = record.gates, record.share
    scalars = torch.stack([z_loss(gates, share), gate_entropy(gates, share), share.new_tensor(record.dropped)])
    return torch.cat([expert_load(gates, share), share @ gates.probs, scalars])


def statistics(means: Sequence[Tensor], device: torch.device) -> dict[str, Tensor]:
    """Losses and statistics, each the mean over the MoE layers of a stack; zeros for a stack without any.

    Args:
        means: for each layer what ``token_means`` gives, perhaps averaged over processes.
        device: where the model is.
    """
    if not means:
        # The same keys as with experts: fairseq sums the logs of all processes key by key.
        return {name: torch.zeros((), device=device) for name in STATISTICS}
    layers = torch.stack(list(means))
    experts = (layers.size(1) - SCALARS) // 2
    load, probs, scalars = layers.split([experts, experts, SCALARS], dim=1)
    z, entropy, dropped = scalars.mean(0)
    in_use = (load > 0).float().mean()
    return dict(zip(STATISTICS, (load_balance(load, probs).mean(), z, entropy, in_use, dropped)))


def over_processes(
    means: Sequence[Tensor], tokens: int, sample_size: Any, group: Any
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Average the means of the layers of a stack over the processes of a group; a collective.

    Args:
        means: for each layer, what ``token_means`` gives here.
        tokens: the number of tokens here.
        sample_size: that of the batch here.
        group: the processes.

    Returns:
        The averages, with the gradient of this process's part in them, and the sample size of all processes.
    """
    own = tokens * torch.cat(list(means))
    sums = torch.cat([own.detach(), own.new_tensor([tokens, float(sample_size)])])
    distributed_utils.all_reduce(sums, group=group)
    all_tokens, all_samples = sums[-2:]
    averages = (own + (sums[:-2] - own.detach())) / all_tokens.clamp(min=1)
    return averages.split([mean.numel() for mean in means]), all_samples
