"""When a process is killed, fails or computes nonsense, nobody waits forever and no checkpoint is lost."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.errors import one_line_errors
from tests.helpers.corpus import Corpus
from tests.parallel import jobs
from tests.parallel.processes import PATIENCE, finish, started
from tests.parallel.scenarios import RESHARDED
from tests.parallel.training import make_trainer, run_updates, stage_directory, write_groups

MINUTE = 60.0
# What each process does while saving, from jobs.KilledAt: the beginning, middle and end of writing, renaming or copying
# a file. Where one ends the next begins.
COUNTS = (15, 6)
MOMENTS = [(rank, moment) for rank in (0, 1) for moment in range(1, COUNTS[rank]) if moment % 3]


@pytest.fixture(scope="module")
def saves(corpus: Corpus) -> tuple[Path, list[dict[str, Any]]]:
    """The weights of the first and the second save, of a run that nobody killed."""
    write_groups(corpus)
    directory = corpus.bin.parent
    save_dir = directory / "saves" / "unharmed"
    save_dir.mkdir(parents=True)
    with started(jobs.save_twice, 2, directory, save_dir, 0, 0) as running:
        finish(running)
    return save_dir, [torch.load(save_dir / f"weights-{number}") for number in (1, 2)]


def test_the_moments_are_all_that_there_are(saves: tuple[Path, Any]) -> None:
    assert tuple(int((saves[0] / f"moments-{rank}").read_text()) for rank in (0, 1)) == COUNTS


@pytest.mark.parametrize(("victim", "moment"), MOMENTS)
def test_a_run_killed_while_saving_can_be_resumed(
    corpus: Corpus, saves: tuple[Path, list[dict[str, Any]]], victim: int, moment: int
) -> None:
    directory = corpus.bin.parent
    save_dir = directory / "saves" / f"{victim}-{moment}"
    save_dir.mkdir()
    with started(jobs.save_twice, 2, directory, save_dir, victim, moment) as running:
        running[victim].join(PATIENCE)
        assert running[victim].exitcode == -9
        if victim == 1:
            running[0].join(PATIENCE)
    trainer = make_trainer(corpus, RESHARDED["adam"], 1, 0, save_dir)
    assert trainer.load_checkpoint(str(save_dir / "checkpoint_last.pt")) is not None
    saved = [all(torch.equal(found, save[name]) for name, found in trainer.get_model().state_dict().items())
             for save in saves[1]]  # fmt: skip
    assert sum(saved) == 1, "neither the one checkpoint nor the other, or a mixture of both"
    assert trainer.get_num_updates() == saved.index(True) + 1


def test_a_missing_broken_or_foreign_file_of_experts_is_named(
    corpus: Corpus, unbroken: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = next((stage_directory(corpus, "nag", 1) / "experts").glob("*-1of2.pt"))

    def truncate(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:2000])

    spoiling: dict[str, Callable[[Path], Any]] = {
        "no such file, but the checkpoint has experts in it; put the folder 'experts' next to": Path.unlink,
        "truncated: its end is missing; copy it again, or use another checkpoint": truncate,
        f"is of another run or save (experts/{other.name}); restore": lambda file: shutil.copy(other, file),
    }
    for number, (message, spoil) in enumerate(spoiling.items()):
        directory = shutil.copytree(stage_directory(corpus, "adam", 1), tmp_path / str(number))
        (file,) = (directory / "experts").glob("*-1of2.pt")
        spoil(file)
        trainer = make_trainer(corpus, RESHARDED["adam"], 1, 0, directory)
        with pytest.raises(SystemExit) as exit, one_line_errors():
            trainer.load_checkpoint(str(directory / "checkpoint_last.pt"))
        assert exit.value.code == 1
        printed = capfd.readouterr().err
        assert str(file) in printed
        assert message in printed


@pytest.mark.parametrize("how", ["exits", "raises", "memory", "validation memory"])
def test_when_one_process_fails_the_others_stop_within_a_minute(corpus: Corpus, how: str) -> None:
    write_groups(corpus)
    with started(jobs.fail, 2, corpus.bin.parent, how) as running:
        running[1].join(PATIENCE)
        failed = time.monotonic()
        running[0].join(MINUTE)
        assert time.monotonic() - failed < MINUTE
        assert running[0].exitcode == 1
        assert running[1].exitcode == {"exits": 3}.get(how, 1)
    errors = [(corpus.bin.parent / "failing" / how / f"error-{rank}").read_text() for rank in (0, 1)]
    assert errors[0].startswith("RuntimeError")
    if "memory" in how:
        assert re.fullmatch(
            r"TaskMoEError: --max-tokens\S* \d+: process 1 ran out of memory, and the others .*", errors[1]
        )


def test_when_one_process_cannot_write_its_experts_all_say_so(corpus: Corpus) -> None:
    write_groups(corpus)
    directory = corpus.bin.parent / "failing" / "disk"
    with started(jobs.fail, 2, corpus.bin.parent, "disk") as running:
        for process in running:
            process.join(MINUTE)
            assert process.exitcode == 1
    reasons = (
        "not kept, as another process cannot write its experts",
        r"cannot be written \(File too large\); nothing was kept of it, make room or give another place",
    )
    for rank, reason in enumerate(reasons):
        error = (directory / f"error-{rank}").read_text()
        assert re.fullmatch(
            rf"TaskMoEError: {directory}/experts/\w+-{rank}of2.pt: {reason}; earlier checkpoints are complete", error
        )
    assert not list(directory.glob("*.pt"))


def test_nan_on_one_process_stops_all_as_it_stops_one_and_leaves_no_usable_checkpoint(
    corpus: Corpus, capfd: pytest.CaptureFixture[str]
) -> None:
    write_groups(corpus)
    trainer = make_trainer(corpus, RESHARDED["adam"], 1, 0, corpus.bin.parent)
    jobs.make_nan(trainer.get_model())
    with pytest.raises(Exception) as alone:  # noqa: PT011  whatever fairseq does
        run_updates(trainer, RESHARDED["adam"].updates[:1], 1, 0)
    with started(jobs.fail, 2, corpus.bin.parent, "nan") as running:
        for process in running:
            process.join(PATIENCE)
            assert process.exitcode == 1
    directory = corpus.bin.parent / "failing" / "nan"
    for rank in (0, 1):
        assert (directory / f"error-{rank}").read_text() == f"{alone.type.__name__}: {alone.value}"
    trainer = make_trainer(corpus, RESHARDED["adam"], 1, 0, directory)
    with pytest.raises(SystemExit), one_line_errors():
        trainer.load_checkpoint(str(directory / "crash.pt"))
    assert "the checkpoint: has no experts: it was written in a crash" in capfd.readouterr().err
