"""Trains a scenario with fairseq's own trainer, on as many processes as torch.distributed has."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fairseq import checkpoint_utils, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from omegaconf import flag_override
from torch import Tensor

from tests.helpers.corpus import Corpus
from tests.helpers.models import GROUPS, LANGS, Row, dictionary, padded
from tests.helpers.tasks import make_args
from tests.parallel.scenarios import RESHARDED, STAGES, Scenario

SMALL = [
    str(each)
    for stack in ("encoder", "decoder")
    for name, value in {"layers": 2, "embed-dim": 16, "ffn-embed-dim": 24, "attention-heads": 2}.items()
    for each in (f"--{stack}-{name}", value)
]
COMMON = (
    *SMALL, "--arch", "taskmoe_transformer", "--moe-expert-count", 4, "--dropout", 0, "--share-all-embeddings",
    "--criterion", "taskmoe_label_smoothed_cross_entropy", "--moe-gate-loss-wt", 0.05,
    "--moe-task-gate-loss-wt", 0.05, "--moe-z-loss-wt", 0.01,
    "--label-smoothing", 0.1,
    "--distributed-backend", "gloo",
)  # fmt: skip


def sample(batch: Sequence[Row]) -> dict[str, Any]:
    """The batch of some rows, as fairseq's data sets make it, but in the order of the rows."""
    symbols = dictionary()
    pad, eos = symbols.pad(), symbols.eos()
    ids = {lang: index for index, lang in enumerate(LANGS, 1)}
    source, target = zip(*((ids[lang] for lang in row.pair.split("-")) for row in batch))
    return {
        "id": torch.arange(len(batch)),
        "nsentences": len(batch),
        "ntokens": sum(len(row.target) + 1 for row in batch),
        "net_input": {
            "src_tokens": padded([(*row.source, eos) for row in batch], pad, left=True),
            "src_lengths": torch.tensor([len(row.source) + 1 for row in batch]),
            "prev_output_tokens": padded([(eos, *row.target) for row in batch], pad, left=False),
            "src_lang_id": torch.tensor(source),
            "tgt_lang_id": torch.tensor(target),
        },
        "target": padded([(*row.target, eos) for row in batch], pad, left=False),
    }


@cache
def configuration(corpus: Corpus, processes: int, rank: int, *flags: Any) -> Any:
    """The configuration that fairseq-train makes of its arguments, which takes it a second."""
    args = make_args(
        corpus, *COMMON, "--moe-task-groups", corpus.raw / "groups.tsv", "--distributed-world-size", processes,
        "--distributed-rank", rank, "--distributed-no-spawn", "--max-tokens", 1000, "--no-epoch-checkpoints", *flags,
    )  # fmt: skip
    return convert_namespace_to_omegaconf(args)


def make_trainer(
    corpus: Corpus,
    scenario: Scenario,
    processes: int,
    rank: int,
    save_dir: Path | None = None,
    restore_file: Path | None = None,
) -> Trainer:
    """A trainer of the scenario's model, with the initial weights that every number of processes gives it."""
    cfg = deepcopy(configuration(corpus, processes, rank, *scenario.training))
    directory = str(save_dir or corpus.bin.parent / "unused")
    # A directory is one training's alone; those that save nothing need none.
    flags = {
        **scenario.model,
        "moe_expert_parallel": scenario.spread,
        "save_dir": directory,
        "no_save": save_dir is None,
        "ddp_backend": scenario.backend,
    }
    if restore_file is not None:
        flags["restore_file"] = str(restore_file)
    cfg.checkpoint.save_dir = directory
    cfg.distributed_training.ddp_backend = scenario.backend
    with flag_override(cfg, "allow_objects", True):
        cfg.model, cfg.task = (Namespace(**{**vars(part), **flags}) for part in (cfg.model, cfg.task))
    utils.set_torch_seed(cfg.common.seed)
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model)
    ids = {lang: index for index, lang in enumerate(LANGS, 1)}
    tokens = {("en", "de"): 30, ("de", "en"): 5, ("en", "fr"): 20, ("fr", "en"): 5, ("de", "fr"): 40}
    model.set_training_tokens({(ids[s], ids[t]): (count, count + 1) for (s, t), count in tokens.items()})
    model = model.double() if scenario.double else model
    return Trainer(cfg, task, model, task.build_criterion(cfg.criterion))


def write_groups(corpus: Corpus) -> None:
    """Write the group file that trainers name."""
    (corpus.raw / "groups.tsv").write_text("".join(f"{pair}\t{group}\n" for pair, group in GROUPS.items()))


def batches_of(update: Any, processes: int, rank: int) -> list[dict[str, Any]]:
    """What one process trains on in an update; a single one has the rows of all."""
    if processes > 1:
        return [sample(part[rank]) if part[rank] else {} for part in update]
    return [sample([row for batch in part for row in batch or ()]) for part in update]


def run_updates(trainer: Trainer, updates: Any, processes: int, rank: int) -> list[dict[str, Any]]:
    """Train, and return after each update the losses logged, the norm, and gradients and weights by name."""
    found = []
    for update in updates:
        batches = batches_of(update, processes, rank)
        filler = sample(update[0][0])
        if next(trainer.get_model().parameters()).dtype == torch.float64:
            logged = step_in_double(trainer, [(batch or filler, not batch) for batch in batches])
        else:
            trainer.reset_dummy_batch(filler)
            logged = step(trainer, batches)
        found.append({"logged": logged, **tensors(trainer)})
    return found


def step(trainer: Trainer, batches: list[dict[str, Any]]) -> dict[str, float]:
    """One update by fairseq's trainer; returns the losses and statistics it logs, and the norm."""
    with metrics.aggregate(new_root=True) as meters:
        trainer.train_step(batches)
    names = [name for name in meters if name.startswith(("loss", "nll_loss", "gnorm", "encoder_", "decoder_"))]
    return {name: float(meters[name].avg) for name in names}


def step_in_double(trainer: Trainer, batches: list[tuple[dict[str, Any], bool]]) -> dict[str, float]:
    """What the trainer does in an update, but for the norm; the batches come with whether they are fillers."""
    trainer.zero_grad()
    totals = torch.zeros(2, dtype=torch.float64)
    for batch, filler in batches:
        loss, size, _ = trainer.task.train_step(
            batch, trainer.model, trainer.criterion, trainer.optimizer, 0, ignore_grad=filler
        )
        totals += torch.tensor([float(loss), 0.0 if filler else float(size)], dtype=torch.float64)
    if trainer.data_parallel_world_size > 1:
        distributed_utils.all_reduce(totals, trainer.data_parallel_process_group)
    trainer.optimizer.all_reduce_grads(trainer.model)
    trainer.optimizer.multiply_grads(trainer.data_parallel_world_size / float(totals[1]))
    trainer.task.optimizer_step(trainer.optimizer, trainer.model, 0)
    return {"loss": float(totals[0]), "sample_size": float(totals[1])}


def tensors(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    """Gradients and weights by name, of stacked experts the slices that this process holds."""
    held = dict(trainer.get_model().named_parameters())
    # Half precision has its gradients and weights in single precision in the optimizer.
    copies = dict(zip(trainer.get_model().parameters(), trainer.optimizer.params))
    return {
        "gradients": {name: copies[each].grad.detach().clone() for name, each in held.items()},
        "weights": {name: each.detach().clone() for name, each in held.items()},
    }


def save_as_fairseq(trainer: Trainer, epoch: int) -> None:
    """Save ``checkpoint_best.pt`` and ``checkpoint_last.pt`` as fairseq does at the end of an epoch."""
    position = {"epoch": epoch, "iterations_in_epoch": 1, "version": 2}
    iterator = SimpleNamespace(epoch=epoch, end_of_epoch=lambda: True, state_dict=lambda: position)
    # fairseq keeps the best loss of a process here; losses that fall make every checkpoint the best.
    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    path = checkpoint_utils.save_checkpoint(trainer.cfg.checkpoint, trainer, iterator, 1.0 / epoch)
    if path is not None:
        trainer.task.post_save(path, epoch)


def run_stage(corpus: Corpus, stage: int, rank: int) -> None:
    """One of STAGES for each of RESHARDED, from the checkpoint of the stage before to one of its own."""
    processes, updates = STAGES[stage]
    for name, scenario in RESHARDED.items():
        source, target = (stage_directory(corpus, name, each) for each in (stage - 1, stage))
        target.mkdir(parents=True, exist_ok=True)
        before = source / "checkpoint_last.pt"
        trainer = make_trainer(corpus, scenario, processes, rank, target, before if stage > 0 else None)
        if stage > 0:
            trainer.load_checkpoint(str(before))
        result = run_updates(trainer, spread_over(scenario.updates[updates], processes), processes, rank)
        torch.save(result, target / f"result-{rank}")
        save_as_fairseq(trainer, stage + 1)


def stage_directory(corpus: Corpus, name: str, stage: int) -> Path:
    """Where a stage saves."""
    return corpus.bin.parent / "stages" / name / str(stage)


def spread_over(updates: Any, processes: int) -> Any:
    """The same batches for another number of processes."""
    return [
        tuple(_deal([row for batch in part for row in batch or ()], processes) for part in update) for update in updates
    ]


def _deal(all_rows: list[Row], processes: int) -> tuple[tuple[Row, ...], ...]:
    each = -(-len(all_rows) // processes)
    return tuple(tuple(all_rows[each * rank : each * (rank + 1)]) for rank in range(processes))
