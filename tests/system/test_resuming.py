"""A training that was interrupted ends as an unbroken one, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.corpus import Corpus
from tests.helpers.training import routing_flags, train

# An epoch of the corpus has about 9 updates: one interruption is within an epoch, one in the next.
UPDATES, INTERRUPTIONS = 14, (4, 11)


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries and lists."""
    if isinstance(value, dict):
        return {path: leaf for key, each in value.items() for path, leaf in flatten(each, f"{name}.{key}").items()}
    if isinstance(value, list):
        return flatten(dict(enumerate(value)), name)
    return {name: value}


def state(directory: Path) -> dict[str, Any]:
    saved = torch.load(directory / "checkpoint_last.pt", weights_only=True)
    return flatten({name: saved[name] for name in ("model", "last_optimizer_state")})


@pytest.mark.parametrize(
    "flags",
    [
        ("source", "target", "--moe-router-jitter", 0.1, "--moe-expert-dropout", 0.1),
        ("token", "sentence", "--moe-router-jitter", 0.1, "--moe-capacity-factor", 1.0),
        (
            "pair",
            "pair",
            "--sampling-method",
            "temperature",
            "--sampling-temperature",
            3,
            "--store-ema",
            "--task-low-rank",
            3,
            "--moe-task-gate-warmup-updates",
            8,
        ),
    ],
    ids=lambda flags: "/".join(flags[:2]),
)
def test_resuming_equals_an_unbroken_run(corpus: Corpus, tmp_path: Path, flags: tuple) -> None:
    flags = (*routing_flags(*flags[:2], tmp_path), *flags[2:], "--no-epoch-checkpoints")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    unbroken = train(corpus, whole, "--max-update", UPDATES, *flags)
    losses: list[str] = []
    for updates in (*INTERRUPTIONS, UPDATES):
        log = train(corpus, parts, "--max-update", updates, *flags)
        losses += [each["loss"] for each in log.stats("train_inner")]
    assert losses == [each["loss"] for each in unbroken.stats("train_inner")]
    assert len(losses) == UPDATES
    expected, found = state(whole), state(parts)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        same = torch.equal(value, found[name]) if torch.is_tensor(value) else value == found[name]
        assert same, name


def test_a_model_can_be_trained_further_with_another_optimizer(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path / "first")
    path = tmp_path / "first" / "checkpoint_last.pt"
    log = train(corpus, tmp_path / "second", "--finetune-from-model", path, "--optimizer", "sgd", "--lr", 0.1)
    assert len(log.stats("train_inner")) == 4
    fresh = train(corpus, tmp_path / "third")
    assert float(log.stats("train_inner")[0]["loss"]) < float(fresh.stats("train_inner")[0]["loss"])
