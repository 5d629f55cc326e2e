"""Label-smoothed cross-entropy with the losses of the gates."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
    label_smoothed_nll_loss,
)
from fairseq.logging import metrics
from torch import Tensor

from taskmoe_plugin.criterions.gate_losses import STATISTICS, statistics
from taskmoe_plugin.errors import raise_all
from taskmoe_plugin.models.config import STACKS
from taskmoe_plugin.moe import GateRecord


@dataclass
class TaskMoELabelSmoothedCrossEntropyCriterionConfig(LabelSmoothedCrossEntropyCriterionConfig):
    moe_gate_loss_wt: float = field(
        default=0.01, metadata={"help": "weight of the balance loss of gates that choose by token or sentence"}
    )
    moe_task_gate_loss_wt: float = field(
        default=0.0, metadata={"help": "weight of the balance loss of gates that choose by task"}
    )
    moe_z_loss_wt: float = field(default=0.0, metadata={"help": "weight of the z-loss of the gates"})
    moe_mutual_information_wt: float = field(
        default=0.0,
        metadata={"help": "weight of the mutual information of experts and tokens, which is maximised (DS-MoE)"},
    )


@register_criterion("taskmoe_label_smoothed_cross_entropy", dataclass=TaskMoELabelSmoothedCrossEntropyCriterionConfig)
class TaskMoELabelSmoothedCrossEntropyCriterion(LabelSmoothedCrossEntropyCriterion):
    """loss = label-smoothed cross-entropy + sample size · Σ over MoE layers of (w · balance loss + z · z-loss
    + m · mutual information loss).

    Gates of tasks have a weight w of their own, by default 0: their experts are dealt evenly, and a load that is uneven
    because one task is half of the tokens cannot be evened by choosing other experts.

    fairseq's losses are sums over tokens, hence the factor; after normalisation it is Switch Transformer's
    loss (section 2.2), one term per layer. With several processes each has the gates' losses of its own batch, as in
    fairseq's MoE branch, so that none ever waits for another here; where experts are spread over processes, which have
    told each other their loads anyway, they are of all batches together.

    Logs, besides fairseq's own, for each stack the mean over its layers of: balance loss (1 when balanced), z-loss,
    entropy of the gates in nats, share of experts in use, share of assignments dropped. In validation it also sums
    loss and tokens for each direction.
    """

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
        moe_gate_loss_wt: float = 0.01,
        moe_task_gate_loss_wt: float = 0.0,
        moe_z_loss_wt: float = 0.0,
        moe_mutual_information_wt: float = 0.0,
    ) -> None:
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        weights = {
            "gate-loss": moe_gate_loss_wt,
            "task-gate-loss": moe_task_gate_loss_wt,
            "z-loss": moe_z_loss_wt,
            "mutual-information": moe_mutual_information_wt,
        }
        raise_all(
            [
                f"--moe-{name}-wt {weight}: give a finite number"
                for name, weight in weights.items()
                if not math.isfinite(weight)
            ]
        )
        self.gate_loss_wt = moe_gate_loss_wt
        self.task_gate_loss_wt = moe_task_gate_loss_wt
        self.z_loss_wt = moe_z_loss_wt
        self.mutual_information_wt = moe_mutual_information_wt

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """Compute the loss of a batch.

        Returns:
            The loss (scalar), the sample size that it is divided by, and what to log: sums over the batch, with the
            same keys and shapes for every batch of a kind.
        """
        net_output = model(**sample["net_input"])
        sample_size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        row_loss, row_nll_loss = self._row_losses(model, net_output, sample)
        loss = row_loss.sum()
        logging_output = {
            "nll_loss": row_nll_loss.sum().data,
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
        }
        for stack in STACKS:
            records = net_output[1]["moe"][stack]
            weights = self._weights(records)
            with nullcontext() if any(weights.values()) else torch.no_grad():
                found = statistics(records, self._logged, loss.device)
            scale = self._sample_size_of(records, model, sample, sample_size)
            for name, weight in weights.items():
                if weight:
                    loss = loss + scale * len(records) * weight * found[name]
            sums = torch.stack(list(found.values())).data * scale
            logging_output.update(zip([f"{stack}_{name}" for name in found], sums))
        logging_output["loss"] = loss.data
        if self.report_accuracy:
            n_correct, total = self.compute_accuracy(model, net_output, sample)
            logging_output["n_correct"] = n_correct.data
            logging_output["total"] = total.data
        if not self.training:
            self._log_pairs(logging_output, sample, row_loss, row_nll_loss)
        return loss, sample_size, logging_output

    def _weights(self, records: list[GateRecord]) -> dict[str, float]:
        """The weight of each loss of the gates of a stack."""
        by_task = any(record.by_task for record in records)
        return {
            "balance_loss": self.task_gate_loss_wt if by_task else self.gate_loss_wt,
            "z_loss": self.z_loss_wt,
            "mutual_information_loss": self.mutual_information_wt,
        }

    @property
    def _logged(self) -> list[str]:
        """What is computed of gates: the mutual information only where it is asked for."""
        return [name for name in STATISTICS if name != "mutual_information_loss" or self.mutual_information_wt]

    def _sample_size_of(self, records: list[GateRecord], model: Any, sample: dict[str, Any], sample_size: Any) -> Any:
        """The size of what the shares of tokens are of: this batch, or those of all processes; then a collective."""
        if all(record.load is None for record in records):
            return sample_size
        own = 0 if sample["net_input"].get("filler", False) else float(sample_size)
        return model.group.sum(records[0].share.new_tensor(own))

    def _row_losses(self, model: Any, net_output: Any, sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
        lprobs, target = self.get_lprobs_and_target(model, net_output, sample)
        losses = label_smoothed_nll_loss(lprobs, target, self.eps, ignore_index=self.padding_idx, reduce=False)
        rows = sample["target"].size(0)
        loss, nll_loss = (each.view(rows, -1).sum(dim=1) for each in losses)
        return loss, nll_loss

    def _log_pairs(
        self, logging_output: dict[str, Any], sample: dict[str, Any], loss: Tensor, nll_loss: Tensor
    ) -> None:
        pair = self.task.pair_index(sample)
        zeros = loss.new_zeros(len(self.task.lang_pairs), dtype=torch.float32)
        ntokens = sample["target"][:, self.ignore_prefix_size :].ne(self.padding_idx).sum(dim=1)
        for name, rows in (("loss", loss), ("nll_loss", nll_loss), ("ntokens", ntokens)):
            logging_output[f"pair_{name}"] = zeros.index_add(0, pair, rows.data.float())

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the sums of several batches or processes."""
        totals = _read_sums(logging_outputs)
        super().reduce_metrics([totals])
        sample_size = totals["sample_size"]
        for stack, name in product(STACKS, STATISTICS):
            if f"{stack}_{name}" in totals:
                mean = totals[f"{stack}_{name}"] / sample_size
                metrics.log_scalar(f"{stack}_{name}", mean, sample_size, round=3)


def _read_sums(logging_outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """What batches have logged as single numbers, summed. The host waits for a GPU once to read all of it.

    Of a tensor fairseq reads each number by itself, and twice in every update.
    """
    single = [name for name, value in logging_outputs[0].items() if not torch.is_tensor(value) or not value.dim()]
    sums = {name: sum(log.get(name, 0) for log in logging_outputs) for name in single}
    tensors = {name: value for name, value in sums.items() if torch.is_tensor(value)}
    read = torch.stack(list(tensors.values())).tolist() if tensors else []
    return {**sums, **dict(zip(tensors, read))}
