"""Losses and statistics of the gates of a stack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from taskmoe_plugin.moe import GateRecord, balance_loss, experts_in_use, gate_entropy, mutual_information_loss, z_loss

# Each is a mean over tokens, or is weighted by them: the values of several processes whose shares sum to 1 add up.
STATISTICS: dict[str, Callable[[GateRecord], Tensor]] = {
    "balance_loss": lambda record: balance_loss(record.gates, record.share, record.load),
    "z_loss": lambda record: z_loss(record.gates, record.share),
    "gate_entropy": lambda record: gate_entropy(record.gates, record.share),
    "experts_in_use": lambda record: experts_in_use(record.gates, record.share, record.load) * record.share.sum(),
    "dropped": lambda record: record.share.sum() * record.dropped,
    "mutual_information_loss": lambda record: mutual_information_loss(record.gates, record.share),
}


def statistics(records: Sequence[GateRecord], names: Iterable[str], device: torch.device) -> dict[str, Tensor]:
    """Losses and statistics, each the mean over the MoE layers of a stack, scalars in fp32; zeros without any layer.

    Args:
        records: of each layer.
        names: which, of ``STATISTICS``.
        device: where the model is.
    """
    if not records:
        # The same keys as with experts: fairseq sums the logs of all processes key by key.
        return {name: torch.zeros((), device=device) for name in names}
    return {name: torch.stack([STATISTICS[name](record) for record in records]).mean() for name in names}
