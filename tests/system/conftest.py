"""Models that several tests translate with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.corpus import Corpus
from tests.helpers.training import WIDER, routing_flags, train


def trained(corpus: Corpus, directory: Path, encoder: str, decoder: str) -> Path:
    """The checkpoint of a training that is long enough for translations of different sentences to differ."""
    train(
        corpus, directory, *routing_flags(encoder, decoder, directory), *WIDER, "--max-update", 120,
        "--no-epoch-checkpoints", "--disable-validation",
    )  # fmt: skip
    return directory / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def checkpoint(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the default routings: source and target."""
    return trained(corpus, tmp_path_factory.mktemp("checkpoint"), "source", "target")


@pytest.fixture(scope="session")
def checkpoints(corpus: Corpus, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model of each kind of routing, by the routings' names."""
    found = {"source/target": checkpoint}
    for encoder, decoder in (("pair", "group"), ("sentence", "sentence"), ("token", "token")):
        directory = tmp_path_factory.mktemp(encoder)
        found[f"{encoder}/{decoder}"] = trained(corpus, directory, encoder, decoder)
    return found
