"""Checkpoints that several tests extract from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.corpus import Corpus
from tests.helpers.training import WIDER, train
from tests.subnet.helpers import DEFAULT, write_model


@pytest.fixture(scope="session")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a training of a few updates, with everything that training writes."""
    directory = tmp_path_factory.mktemp("trained")
    train(corpus, directory, *DEFAULT, "--max-update", 3, "--store-ema", "--ema-decay", 0.5)
    return directory


@pytest.fixture(scope="session")
def learned(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned to translate different sentences differently."""
    directory = tmp_path_factory.mktemp("learned")
    train(corpus, directory, *WIDER, "--max-update", 120, "--no-epoch-checkpoints", "--disable-validation")
    return directory / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def full(corpus: Corpus, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the default routings and two experts of four for each token."""
    path = tmp_path_factory.mktemp("full") / "checkpoint.pt"
    return write_model(corpus, trained / "checkpoint_last.pt", path, *DEFAULT)


@pytest.fixture(scope="session")
def partial(corpus: Corpus, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose encoder routes by token."""
    path = tmp_path_factory.mktemp("partial") / "checkpoint.pt"
    return write_model(corpus, trained / "checkpoint_last.pt", path, "--encoder-moe-routing", "token")


@pytest.fixture(scope="session")
def of_numbers(numbers: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes checkpoints of models with random, large weights for this text, by their flags."""
    directory = tmp_path_factory.mktemp("of_numbers")
    pairs = ("--langs", "en,de,fr", "--lang-pairs", "en-de,de-en,en-fr,fr-en")
    train(numbers, directory, *pairs, "--max-update", 1, "--no-epoch-checkpoints", "--disable-validation")

    def make(*flags: Any) -> Path:
        path = directory / f"{len(list(directory.iterdir()))}.pt"
        return write_model(numbers, directory / "checkpoint_last.pt", path, *pairs, *flags)

    return make
