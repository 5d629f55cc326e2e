"""Models train and translate in every precision, whatever they route by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.updates import check_finite, make_trainer, train, translate
from tests.helpers.corpus import Corpus
from tests.helpers.training import routing_flags

PRECISIONS = ("fp32", "fp16", "bf16", "amp")
ROUTINGS = (("source", "target"), ("pair", "pair"), ("group", "group"), ("sentence", "sentence"), ("token", "token"))
LOSSES = ("--moe-gate-loss-wt", 0.01, "--moe-task-gate-loss-wt", 0.01, "--moe-z-loss-wt", 0.001)


def check(corpus: Corpus, device: torch.device, precision: str, *flags: Any) -> None:
    trainer = make_trainer(corpus, device, precision, "--moe-freq", 1, *LOSSES, *flags)
    check_finite(trainer, train(trainer))
    # Batches of one task are computed in another way than those of several.
    for pairs in (("en-de", "en-de", "en-de"), ("en-de", "de-en", "fr-en")):
        translate(trainer, device, pairs)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("routing", ROUTINGS, ids="/".join)
def test_three_updates_and_a_translation(
    corpus: Corpus, device: torch.device, tmp_path: Path, routing: tuple[str, str], precision: str
) -> None:
    flags = routing_flags(*routing, tmp_path)
    check(corpus, device, precision, *flags, "--activation-dropout", 0.1, "--moe-router-jitter", 0.1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("routing", ["target", "token"])
def test_experts_of_a_width_that_no_kernel_is_made_for(
    corpus: Corpus, device: torch.device, tmp_path: Path, routing: str, precision: str
) -> None:
    check(corpus, device, precision, *routing_flags(routing, routing, tmp_path), "--moe-expert-ffn-dim", 1365)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_static_gates(corpus: Corpus, device: torch.device, precision: str) -> None:
    check(corpus, device, precision, "--moe-task-gate", "static")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_merged_experts(corpus: Corpus, device: torch.device, precision: str) -> None:
    check(corpus, device, precision, "--moe-combine", "weights", "--activation-dropout", 0.1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("flags", [(), ("--encoder-moe-freq", 0, "--decoder-moe-freq", 0)], ids=["experts", "dense"])
def test_low_rank_matrices(corpus: Corpus, device: torch.device, flags: tuple[Any, ...], precision: str) -> None:
    check(corpus, device, precision, "--task-low-rank", 8, *flags)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_our_optimizer(corpus: Corpus, device: torch.device, precision: str) -> None:
    check(corpus, device, precision, "--optimizer", "taskmoe_adam")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("capacity", ["--moe-capacity-factor", "--moe-eval-capacity-factor"])
def test_a_capacity(corpus: Corpus, device: torch.device, tmp_path: Path, capacity: str, precision: str) -> None:
    check(corpus, device, precision, *routing_flags("token", "token", tmp_path), capacity, 1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("routing", ["target", "token"])
def test_activations_computed_again(
    corpus: Corpus, device: torch.device, tmp_path: Path, routing: str, precision: str
) -> None:
    check(corpus, device, precision, *routing_flags(routing, routing, tmp_path), "--checkpoint-activations")
