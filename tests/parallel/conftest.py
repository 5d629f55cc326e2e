"""Results that several tests look at: processes take seconds to start, so they are started once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.helpers.corpus import Corpus
from tests.parallel.jobs import reshard, train_scenarios
from tests.parallel.processes import finish, started
from tests.parallel.scenarios import RESHARDED, SCENARIOS, STAGES
from tests.parallel.training import make_trainer, run_stage, run_updates, write_groups

PROCESSES = 2


@dataclass(frozen=True)
class Trained:
    """What came of every scenario: after each update, what ``run_updates`` tells.

    Attributes:
        alone: of one process.
        together: of each of two processes.
    """

    alone: dict[str, list[dict[str, Any]]]
    together: list[dict[str, list[dict[str, Any]]]]


@pytest.fixture(scope="session")
def trained(corpus: Corpus) -> Trained:
    """All scenarios, trained on one process and on two."""
    write_groups(corpus)
    directory = corpus.bin.parent
    with started(train_scenarios, PROCESSES, directory) as running:
        alone = {
            name: run_updates(make_trainer(corpus, scenario, 1, 0), scenario.updates, 1, 0)
            for name, scenario in SCENARIOS.items()
        }
        finish(running)
    together = [torch.load(directory / f"results-{rank}.pt") for rank in range(PROCESSES)]
    return Trained(alone, together)


@pytest.fixture(scope="session")
def unbroken(corpus: Corpus) -> dict[str, list[dict[str, Any]]]:
    """RESHARDED on one process without a break; the stages of resharding have run as well."""
    write_groups(corpus)
    directory = corpus.bin.parent
    run_stage(corpus, 0, 0)
    for stage in (1, 2):
        with started(reshard, STAGES[stage][0], directory, stage) as running:
            finish(running)
    run_stage(corpus, 3, 0)
    return {
        name: run_updates(make_trainer(corpus, scenario, 1, 0), scenario.updates, 1, 0)
        for name, scenario in RESHARDED.items()
    }
