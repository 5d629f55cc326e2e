"""One of several processes that train scenarios together; started by the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed as dist

from tests.helpers.corpus import Corpus
from tests.parallel.scenarios import SCENARIOS
from tests.parallel.training import make_trainer, run_updates


def main(rank: int, processes: int, port: int, directory: Path) -> None:
    """Train every scenario and write what came of it to ``directory``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    corpus = Corpus(directory / "raw", directory / "bin")
    results = {}
    for name, scenario in SCENARIOS.items():
        trainer = make_trainer(corpus, scenario, processes, rank)
        results[name] = run_updates(trainer, scenario.updates, processes, rank)
    torch.save(results, directory / f"results-{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
