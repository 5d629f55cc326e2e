"""Which experts the tasks use, in TensorBoard, after every validation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import progress_bar
from torch import Tensor

from taskmoe_plugin.models.config import STACKS
from taskmoe_plugin.moe import Usage, counted_usage

DIRECTORY = "experts"


class ValidationUsage:
    """Writes histograms: for each MoE layer and task, over the experts, the mean weight that each has for the task.

    fairseq prints whatever it hands to TensorBoard, and a number for each layer, task and expert would be thousands. So
    these go to a writer of their own. Stacks that route by task are read from their gates; of the others, whose tasks
    here are the language pairs, the weights are counted on the validation set.

    Args:
        logdir: fairseq's ``--tensorboard-logdir``; ``experts`` is made in it.
        pairs: the language pairs of the validation set.
    """

    def __init__(self, logdir: str, pairs: Sequence[str]) -> None:
        self.directory = Path(logdir, DIRECTORY)
        self.pairs = pairs
        self._counts: dict[str, Any] = {}
        self._writer: Any = None
        self._step: int | None = None

    @contextmanager
    def counting(self, model: Any, pair: Tensor) -> Iterator[dict[str, Tensor]]:
        """Within the context, counts a batch's passes; yields what to add to its logging output afterwards.

        Args:
            model: the model.
            pair: (B,) int64, the place of each row's pair in ``pairs``.
        """
        counted = [name for name in STACKS if not getattr(model, name).moe_config.by_task]
        layers = [layer for name in counted for layer in getattr(model, name).moe_layers]
        found: dict[str, Tensor] = {}
        with counted_usage(layers, pair, len(self.pairs)) as sums:
            yield found
        by_layer = iter(sums)
        for name in counted:
            own = [next(by_layer) for _ in getattr(model, name).moe_layers]
            if own:
                found[f"{name}_usage"] = torch.stack(own)

    def add(self, logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Add the counts of batches, perhaps of several processes, to those since the last ``write``."""
        for name in (f"{stack}_usage" for stack in STACKS):
            for log in logging_outputs:
                if name in log:
                    self._counts[name] = self._counts.get(name, 0) + log[name]

    def write(self, model: Any, step: int) -> None:
        """Write the histograms, once for each step: of several validation sets the first counts.

        Args:
            model: the model.
            step: number of updates.
        """
        # Not in fairseq's meters: these are saved in checkpoints, which may go on with other pairs.
        counts, self._counts = self._counts, {}
        # fairseq warns where TensorBoard is not installed.
        if progress_bar.SummaryWriter is None or distributed_utils.get_global_rank() > 0 or step == self._step:
            return
        self._step = step
        self._writer = self._writer or progress_bar.SummaryWriter(str(self.directory))
        for name in STACKS:
            stack = getattr(model, name)
            tasks = stack.tasks.table.names if stack.moe_config.by_task else self.pairs
            for index, usage in zip(stack.moe_config.moe_layers, _usages(stack, counts.get(f"{name}_usage", ()))):
                for task, weight in zip(tasks, usage.weight.tolist()):
                    self._write_histogram(f"{name}_layer_{index}/{task}", weight, step)
        self._writer.flush()

    def _write_histogram(self, tag: str, weight: list[float], step: int) -> None:
        # The buckets are the experts; each reaches up to its limit.
        self._writer.add_histogram_raw(
            tag,
            min=-0.5,
            max=len(weight) - 0.5,
            num=sum(weight),
            sum=sum(expert * each for expert, each in enumerate(weight)),
            sum_squares=sum(expert**2 * each for expert, each in enumerate(weight)),
            bucket_limits=[expert + 0.5 for expert in range(len(weight))],
            bucket_counts=weight,
            global_step=step,
        )


def _usages(stack: Any, counts: Iterable[Tensor]) -> list[Usage]:
    if not stack.moe_config.by_task:
        return [Usage.of_counts(each, stack.moe_config.top_k) for each in counts]
    with torch.no_grad():
        return [Usage.of_table(gates, stack.tasks.share, stack.tasks.merge) for gates in stack.tasks.gates().layers()]
