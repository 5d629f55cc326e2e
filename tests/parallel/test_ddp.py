"""Two processes train as one, however they exchange gradients, and whatever experts their batches leave out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.helpers.corpus import Corpus
from tests.parallel.jobs import train_with_ddp
from tests.parallel.processes import finish, started
from tests.parallel.scenarios import BACKENDS, DDP
from tests.parallel.test_same_training import assert_near, whole
from tests.parallel.training import make_trainer, run_updates, write_groups


@dataclass(frozen=True)
class Trained:
    """What came of every scenario.

    Attributes:
        alone: of one process.
        together: of each of two processes, by backend and scenario.
        collectives: of each of two processes, what ``count_collectives`` tells.
    """

    alone: dict[str, list[dict[str, Any]]]
    together: list[dict[tuple[str, str], list[dict[str, Any]]]]
    collectives: list[dict[str, dict[str, list[int]]]]


@pytest.fixture(scope="module")
def trained(corpus: Corpus) -> Trained:
    """All scenarios, trained on one process and on two."""
    write_groups(corpus)
    directory = corpus.bin.parent
    with started(train_with_ddp, 2, directory) as running:
        alone = {
            name: run_updates(make_trainer(corpus, scenario, 1, 0), scenario.updates, 1, 0)
            for name, scenario in DDP.items()
        }
        finish(running)
    together, collectives = (
        [torch.load(directory / f"{kind}-{rank}.pt") for rank in (0, 1)] for kind in ("ddp-results", "collectives")
    )
    return Trained(alone, together, collectives)


@pytest.mark.parametrize("name", DDP)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_and_weights_are_those_of_one_process(trained: Trained, backend: str, name: str) -> None:
    for update, expected in enumerate(trained.alone[name]):
        for what in ("gradients", "weights"):
            found = whole([process[backend, name][update][what] for process in trained.together], DDP[name].spread)
            assert_near(found, expected[what], 1e-5)


@pytest.mark.parametrize("name", DDP)
@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_and_norms_are_those_of_one_process(trained: Trained, backend: str, name: str) -> None:
    for process in trained.together:
        for found, expected in zip(process[backend, name], trained.alone[name]):
            for value in ("loss", "nll_loss", "gnorm"):
                assert found["logged"][value] == pytest.approx(expected["logged"][value], rel=1e-5), value


def test_without_experts_there_is_something_to_clip(trained: Trained) -> None:
    assert trained.alone["no-experts"][0]["logged"]["gnorm"] > 0.6


@pytest.mark.parametrize("name", [name for name in DDP if not DDP[name].spread])
def test_where_every_process_has_all_experts_none_waits_for_another_in_a_batch(trained: Trained, name: str) -> None:
    for process in trained.collectives:
        assert process[name] == {}


@pytest.mark.parametrize(
    ("name", "stacks"), [("spread", 0), ("spread-token", 2), ("spread-dense-encoder", 1), ("no-experts", 0)]
)
def test_losses_of_spread_gates_take_at_most_a_number_for_each_stack(trained: Trained, name: str, stacks: int) -> None:
    for process in trained.collectives:
        assert process[name].get("all_reduce", []) == [1] * stacks
