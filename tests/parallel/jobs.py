"""What the processes of the tests do."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from tests.helpers.corpus import Corpus
from tests.parallel.scenarios import RESHARDED, SCENARIOS
from tests.parallel.training import make_trainer, run_stage, run_updates, save_as_fairseq, tensors


def corpus_in(directory: Path) -> Corpus:
    """The corpus that the tests have written."""
    return Corpus(directory / "raw", directory / "bin")


def train_scenarios(rank: int, processes: int, directory: Path) -> None:
    """Train every scenario and write what comes of it."""
    results = {}
    for name, scenario in SCENARIOS.items():
        trainer = make_trainer(corpus_in(directory), scenario, processes, rank)
        results[name] = run_updates(trainer, scenario.updates, processes, rank)
    torch.save(results, directory / f"results-{rank}.pt")


def reshard(rank: int, processes: int, directory: Path, stage: int) -> None:
    """Run a stage of resharding."""
    run_stage(corpus_in(directory), stage, rank)


def save_twice(rank: int, processes: int, directory: Path, save_dir: Path, victim: int, moment: int) -> None:
    """Save after an update and, after another, save again; one process kills itself at a moment of that.

    Moments are counted from 1 and are the beginnings, middles and ends of writing, renaming and copying files. With
    moment 0 nobody is killed, and it is written down how many moments there were, and what was saved.
    """
    scenario = RESHARDED["adam"]
    trainer = make_trainer(corpus_in(directory), scenario, processes, rank, save_dir)
    for number, update in enumerate(scenario.updates[:2]):
        run_updates(trainer, [update], processes, rank)
        if number == 1:
            counted = KilledAt(moment if rank == victim else 0)
        save_as_fairseq(trainer, number + 1)
        if number == 1:
            (save_dir / f"moments-{rank}").write_text(str(counted.passed))
        if moment == 0:
            write_weights(trainer, processes, rank, save_dir / f"weights-{number + 1}")


def write_weights(trainer: Any, processes: int, rank: int, path: Path) -> None:
    """Write down the tensors of the whole model, gathered from all processes."""
    found: list[Any] = [None] * processes
    dist.all_gather_object(found, tensors(trainer)["weights"])
    if rank == 0:
        model = trainer.get_model()
        torch.save({**model.state_dict(), **{name: each for part in found for name, each in part.items()}}, path)


class KilledAt:
    """Kills its process at a moment of writing, renaming and copying files; 0: never.

    Attributes:
        passed: moments so far.
    """

    def __init__(self, moment: int) -> None:
        self.moment, self.passed = moment, 0
        self._around(torch, "save", self._write_half)
        self._around(Path, "replace")
        self._around(os, "rename")
        self._around(shutil, "copyfile", self._copy_half)

    def _around(self, owner: Any, name: str, half: Callable[..., None] | None = None) -> None:
        original = getattr(owner, name)

        def replacement(*args: Any, **kwargs: Any) -> Any:
            self._pass()
            if half is not None and self.passed + 1 == self.moment:
                half(*args)
            self._pass()
            result = original(*args, **kwargs)
            self._pass()
            return result

        setattr(owner, name, replacement)

    def _pass(self) -> None:
        self.passed += 1
        if self.passed == self.moment:
            os.kill(os.getpid(), signal.SIGKILL)

    @staticmethod
    def _write_half(_: Any, file: Any) -> None:
        if isinstance(file, Path):
            file.write_bytes(b"PK" * 1000)
        else:
            file.write(b"PK" * 1000)
            file.flush()

    @staticmethod
    def _copy_half(source: str, target: str) -> None:
        contents = Path(source).read_bytes()
        Path(target).write_bytes(contents[: len(contents) // 2])


def fail(rank: int, processes: int, directory: Path, how: str) -> None:
    """Train an update in which process 1 fails; every process writes down what it met and when."""
    scenario, save_dir = RESHARDED["adam"], directory / "failing" / how
    save_dir.mkdir(parents=True, exist_ok=True)
    trainer = make_trainer(corpus_in(directory), scenario, processes, rank, save_dir)
    run_updates(trainer, scenario.updates[:1], processes, rank)
    if rank == 1:
        model = trainer.get_model()
        if how == "exits":
            model.forward = lambda **_: sys.exit(3)
        elif how == "raises":
            model.forward = lambda **_: {}["nothing"]
        elif how == "memory":
            model.forward = _out_of_memory
        elif how == "nan":
            make_nan(model)
    try:
        run_updates(trainer, scenario.updates[1:2], processes, rank)
    except BaseException as error:
        (save_dir / f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
        raise


def make_nan(model: Any) -> None:
    """Let a model compute nothing but NaN from now on."""
    model.decoder.output_projection.register_forward_hook(lambda _, __, output: output * float("nan"))


def _out_of_memory(**_: Any) -> None:
    raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
