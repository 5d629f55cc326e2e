"""Settings and fixtures that all tests share."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.helpers.corpus import Corpus, write_corpus
from tests.helpers.numbers import write_numbers
from tests.helpers.training import train, train_numbers

# fairseq's commands would bind the root logger to whatever sys.stdout is when the first of them is imported.
logging.getLogger().addHandler(logging.NullHandler())
torch.set_num_threads(1)

# The same examples every time, and no limit on how long one takes on a busy machine.
settings.register_profile("taskmoe", deadline=None, derandomize=True, database=None)
settings.load_profile("taskmoe")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The made-up corpus, binarised."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Text in SentencePiece pieces; ``raw/pieces.model`` is their model."""
    return write_numbers(tmp_path_factory.mktemp("numbers"), train=300, test=20)


@pytest.fixture(scope="session")
def learned_numbers(numbers: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that translates different sentences of this text differently."""
    norms = ("--encoder-normalize-before", "--decoder-normalize-before")
    return train_numbers(numbers, tmp_path_factory.mktemp("learned_numbers"), *norms)


@pytest.fixture(scope="session")
def template(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that training wrote, its task shares included, to put other models into."""
    directory = tmp_path_factory.mktemp("template")
    flags = ("--encoder-normalize-before", "--decoder-normalize-before", "--disable-validation")
    train(corpus, directory, *flags, "--max-update", 1, "--no-epoch-checkpoints")
    return directory / "checkpoint_last.pt"
