"""Under fairseq's default, PyTorch's own DDP, two processes train as one, whatever experts their batches leave out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.corpus import Corpus
from tests.parallel.jobs import train_with_ddp
from tests.parallel.processes import finish, started
from tests.parallel.scenarios import DDP
from tests.parallel.test_same_training import assert_near, whole
from tests.parallel.training import make_trainer, run_updates, write_groups

Results = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def trained(corpus: Corpus) -> tuple[Results, list[Results]]:
    """What came of every scenario on one process, and of each of two."""
    write_groups(corpus)
    directory = corpus.bin.parent
    with started(train_with_ddp, 2, directory) as running:
        alone = {
            name: run_updates(make_trainer(corpus, scenario, 1, 0), scenario.updates, 1, 0)
            for name, scenario in DDP.items()
        }
        finish(running)
    return alone, [torch.load(directory / f"ddp-results-{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", DDP)
@pytest.mark.parametrize("what", ["gradients", "weights"])
def test_gradients_and_weights_are_those_of_one_process(trained: Any, name: str, what: str) -> None:
    alone, together = trained
    for update, expected in enumerate(alone[name]):
        found = whole([process[name][update][what] for process in together], DDP[name].spread)
        assert_near(found, expected[what], 1e-5)


@pytest.mark.parametrize("name", DDP)
def test_losses_and_norms_are_those_of_one_process(trained: Any, name: str) -> None:
    alone, together = trained
    for process in together:
        for found, expected in zip(process[name], alone[name]):
            for value in ("loss", "nll_loss", "gnorm"):
                assert found["logged"][value] == pytest.approx(expected["logged"][value], rel=1e-5), value
