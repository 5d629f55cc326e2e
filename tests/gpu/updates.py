"""Updates and translations of the made-up corpus, by fairseq's own trainer and generator, on any device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from fairseq import tasks, utils
from fairseq.dataclass.configs import GenerationConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.trainer import Trainer

from tests.helpers.corpus import Corpus
from tests.helpers.tasks import batches, make_args
from tests.helpers.training import CRITERION, MODEL, OPTIMIZER

UPDATES = 3


def make_trainer(corpus: Corpus, device: torch.device, precision: str, *flags: Any) -> Trainer:
    """A trainer of a small model.

    Args:
        corpus: the data.
        device: where it trains.
        precision: ``fp32``, or a flag of fairseq: ``fp16``, ``bf16`` or ``amp``.
        flags: more flags of fairseq.
    """
    half = () if precision == "fp32" else (f"--{precision}",)
    if precision == "fp16" and device.type == "cpu":
        half = (*half, "--fp16-no-flatten-grads")  # what fairseq flattens it puts on a GPU
    args = make_args(corpus, *MODEL, *CRITERION, *OPTIMIZER, "--lr", 1e-3, "--clip-norm", 1, *half, *flags)
    args.cpu, args.tpu = device.type == "cpu", False  # fairseq takes --bf16 to mean a TPU
    cfg = convert_namespace_to_omegaconf(args)
    torch.manual_seed(0)
    task = tasks.setup_task(cfg.task)
    return Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))


def train(trainer: Trainer, rank: int = 0, processes: int = 1) -> list[float]:
    """Make some updates, with one of several processes' share of the batches; returns their losses."""
    losses = []
    for batch in itertools.islice(batches(trainer.task, "train"), rank, UPDATES * processes, processes):
        with metrics.aggregate(new_root=True) as found:
            trainer.train_step([batch])
        losses.append(float(found["loss"].avg))
    assert trainer.get_num_updates() == UPDATES
    return losses


def check_finite(trainer: Trainer, losses: list[float]) -> None:
    """Losses and weights are numbers."""
    assert all(math.isfinite(loss) for loss in losses), losses
    for name, parameter in trainer.get_model().named_parameters():
        assert parameter.isfinite().all(), name


def translate(trainer: Trainer, device: torch.device, pairs: Sequence[str]) -> None:
    """Translate a sentence of each of some pairs, all in one batch, and check that there are translations."""
    task, model = trainer.task, trainer.get_model()
    model.eval()
    model.prepare_for_inference_(trainer.cfg)
    task.args.source_lang, task.args.target_lang = pairs[0].split("-")
    generation = GenerationConfig(beam=2)
    generation.max_len_a, generation.max_len_b = 0, 8
    generator = task.build_generator([model], generation)
    symbols = task.source_dictionary
    sentences = [torch.arange(symbols.nspecial, symbols.nspecial + length) for length, _ in enumerate(pairs, 1)]
    dataset = task.build_dataset_for_inference(sentences, [len(each) for each in sentences])
    batch = dataset.collater([dataset[index] for index in range(len(dataset))])
    ids = {lang: index for index, lang in enumerate(task.langs, 1)}
    for side, name in enumerate(("src_lang_id", "tgt_lang_id")):
        batch["net_input"][name] = torch.tensor([ids[pair.split("-")[side]] for pair in pairs])
    if device.type == "cuda":
        batch = utils.move_to_cuda(batch)
    found = task.inference_step(generator, [model], batch)
    assert len(found) == len(pairs)
    for beam in found:
        assert beam[0]["score"].isfinite()
        assert beam[0]["tokens"][-1] == symbols.eos()
