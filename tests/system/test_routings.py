"""Training and translating with every combination of routings that flags can ask for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.helpers.corpus import PAIRS, Corpus
from tests.helpers.training import generate, routing_flags, train

# The routings of TaskMoE's table 1, and with them each of ours in each stack.
COMBINATIONS = [
    ("token", "token"), ("sentence", "sentence"), ("pair", "pair"), ("target", "target"), ("pair", "token"),
    ("target", "token"), ("token", "pair"), ("token", "target"),
    ("source", "target"), ("source", "source"), ("source", "group"), ("group", "group"), ("group", "sentence"),
    ("sentence", "target"),
]  # fmt: skip
LOGGED = ("balance_loss", "gate_entropy", "experts_in_use", "dropped")


@pytest.mark.parametrize("routing", COMBINATIONS, ids="/".join)
def test_a_model_trains_and_translates(corpus: Corpus, tmp_path: Path, routing: tuple[str, str]) -> None:
    log = train(corpus, tmp_path, "--max-update", 6, *routing_flags(*routing, tmp_path))
    losses = [float(each["nll_loss"]) for each in log.stats("train_inner")]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    (valid,) = log.stats("valid")
    for stack in ("encoder", "decoder"):
        stats = {name: float(valid[f"valid_{stack}_{name}"]) for name in LOGGED}
        assert 0.9 < stats["balance_loss"] <= 4
        assert 0 < stats["gate_entropy"] <= math.log(4) + 1e-3
        assert 0.5 <= stats["experts_in_use"] <= 1
        assert stats["dropped"] == 0
    assert all(float(valid[f"valid_{pair}_nll_loss"]) > 0 for pair in PAIRS)
    translated = generate(corpus, tmp_path / "checkpoint_last.pt", "de-en")
    assert sorted(translated.hypotheses) == list(range(21))


@pytest.mark.parametrize(
    "flags",
    [
        ("--moe-task-gate", "static"),
        ("--moe-task-gate", "static", "--encoder-moe-routing", "pair", "--decoder-moe-routing", "pair"),
        ("--moe-top-k", 1, "--moe-router-jitter", 0.01),
        ("--moe-top-k", 4, "--moe-expert-dropout", 0.2, "--moe-z-loss-wt", 0.001),
        ("--encoder-moe-freq", 0),
        ("--decoder-moe-freq", 0),
        ("--moe-freq", 1, "--moe-expert-ffn-dim", 8, "--encoder-normalize-before", "--decoder-normalize-before"),
        ("--sampling-method", "temperature", "--sampling-temperature", 5),
        ("--sampling-method", "RoundRobin"),
        ("--virtual-epoch-size", 50, "--virtual-data-size", 200),
        ("--left-pad-source", "False"),
        ("--left-pad-target", "True"),
        ("--encoder-layerdrop", 0.5, "--decoder-layerdrop", 0.5),
        ("--update-freq", 2, "--clip-norm", 0.1),
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_a_model_trains_and_translates_with(corpus: Corpus, tmp_path: Path, flags: tuple) -> None:
    log = train(corpus, tmp_path, *flags)
    assert len(log.stats("train_inner")) == 4
    assert math.isfinite(float(log.stats("valid")[-1]["valid_loss"]))
    translated = generate(corpus, tmp_path / "checkpoint_last.pt", "en-fr")
    assert sorted(translated.hypotheses) == [0, 1, 2]


def test_a_capacity_factor_drops_tokens_in_training_only(corpus: Corpus, tmp_path: Path) -> None:
    flags = routing_flags("token", "token", tmp_path)
    log = train(corpus, tmp_path, *flags, "--moe-capacity-factor", 0.5)
    assert all(float(each["encoder_dropped"]) > 0.3 for each in log.stats("train_inner"))
    assert float(log.stats("valid")[0]["valid_encoder_dropped"]) == 0
    assert len(generate(corpus, tmp_path / "checkpoint_last.pt", "de-en").hypotheses) == 21


def test_language_tokens_in_place_of_bos_and_eos(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path, "--lang-tok-replacing-bos-eos")
    translated = generate(corpus, tmp_path / "checkpoint_last.pt", "de-en", "--lang-tok-replacing-bos-eos")
    assert len(translated.hypotheses) == 21
