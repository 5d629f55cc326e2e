"""Results that several tests look at: processes take seconds to start, so they are started once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.corpus import Corpus
from tests.parallel import launching
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


@dataclass(frozen=True)
class Ran:
    """A command that has ended: what it printed, with what status, and how long after a process was killed."""

    lines: list[str]
    status: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Launched:
    """Training with ``taskmoe launch``: a run one of whose processes was killed, and the same command once more.

    Attributes:
        checkpoint: where the second run ended.
        broken, resumed: the runs.
    """

    checkpoint: Path
    broken: Ran
    resumed: Ran


@pytest.fixture(scope="session")
def launched(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """A training that has experts on two processes, begun and gone on with."""
    directory = tmp_path_factory.mktemp("launched")
    lines, killed = [], 0.0
    with launching.start(corpus, directory, *launching.FLAGS) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if killed == 0.0 and max(launching.losses([line]), default=0) == launching.SAVED + 5:
                launching.kill_worker(process, 1)
                killed = time.monotonic()
    broken = Ran(lines, process.returncode, time.monotonic() - killed)
    with launching.start(corpus, directory, *launching.FLAGS) as process:
        lines = launching.finish(process)
    return Launched(directory / "checkpoint_last.pt", broken, Ran(lines, process.returncode))
