"""Checkpoints to report on, and the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.corpus import Corpus
from tests.subnet.helpers import DEFAULT, write_model


@pytest.fixture(scope="session")
def by_task(corpus: Corpus, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose stacks route by source and by target."""
    return write_model(corpus, template, tmp_path_factory.mktemp("by_task") / "checkpoint.pt", *DEFAULT)


@pytest.fixture(scope="session")
def by_token(corpus: Corpus, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose encoder routes by token, its decoder by sentence."""
    flags = ("--encoder-moe-routing", "token", "--decoder-moe-routing", "sentence")
    return write_model(corpus, template, tmp_path_factory.mktemp("by_token") / "checkpoint.pt", *flags)


@pytest.fixture(scope="session")
def mixed(corpus: Corpus, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose encoder routes by token, its decoder by target."""
    path = tmp_path_factory.mktemp("mixed") / "checkpoint.pt"
    return write_model(corpus, template, path, "--encoder-moe-routing", "token")
