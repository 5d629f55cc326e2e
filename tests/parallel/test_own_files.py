"""Files of experts are removed with their checkpoints, and only those that this run has written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.files.loading import load
from taskmoe_plugin.parallel import own_files
from taskmoe_plugin.parallel.manifest import KEY, make_manifest
from taskmoe_plugin.parallel.own_files import OwnFiles

LAST, BEST = "checkpoint_last.pt", "checkpoint_best.pt"


class Run:
    """A training that saves what fairseq would."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.own = directory, OwnFiles(directory)
        (directory / "experts").mkdir(exist_ok=True)

    def save(self, number: int, *names: str, removed: tuple[str, ...] = ()) -> None:
        """Save checkpoints of these names, and remove some."""
        self.own.before_save()
        manifest = self._write(number)
        self.own.add(manifest["files"])
        for name in names:
            torch.save({"model": {KEY: manifest}}, self.directory / name)
        for name in removed:
            (self.directory / name).unlink()
        self.own.remove_unused()

    def save_nothing(self, number: int) -> None:
        """What happens at a save for which fairseq writes no checkpoint."""
        self.own.before_save()
        self.own.add(self._write(number)["files"])

    def _write(self, number: int) -> dict[str, Any]:
        manifest = make_manifest(str(number), 2, 4, [])
        for file in manifest["files"]:
            torch.save({}, self.directory / file)
        return manifest

    def left(self) -> set[int]:
        """The saves whose files are there."""
        found = [path.name for path in (self.directory / "experts").iterdir()]
        assert len(found) == 2 * len({name.split("-")[0] for name in found})
        return {int(name.split("-")[0]) for name in found}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_files_go_with_their_last_checkpoint(run: Run) -> None:
    run.save(1, "checkpoint1.pt", BEST, LAST)
    run.save(2, "checkpoint2.pt", LAST)
    assert run.left() == {1, 2}
    run.save(3, "checkpoint3.pt", BEST, LAST, removed=("checkpoint1.pt",))
    assert run.left() == {2, 3}
    run.save(4)
    run.save(5, LAST)
    assert run.left() == {2, 3, 5}


@pytest.mark.parametrize("to", ["best.pt.bak", "mine.pt", "below/checkpoint_best.pt"])
@pytest.mark.parametrize("again", [False, True], ids=["same run", "next run"])
def test_what_a_renamed_or_moved_checkpoint_needs_stays(run: Run, to: str, again: bool) -> None:
    run.save(1, BEST, LAST)
    (run.directory / "below").mkdir()
    (run.directory / BEST).rename(run.directory / to)
    run = Run(run.directory) if again else run
    for number in (2, 3, 4):
        run.save(number, BEST, LAST)
    assert run.left() == {1, 4}


def test_what_a_copy_beside_it_needs_stays(run: Run) -> None:
    run.save(1, LAST)
    shutil.copy(run.directory / LAST, run.directory / "kept")
    run.save(2, LAST)
    run.save(3, LAST)
    assert run.left() == {1, 3}


def test_files_of_other_runs_and_users_stay(run: Run) -> None:
    run.save(1, LAST)
    (run.directory / "experts" / "9-mine.pt").write_text("mine")
    (run.directory / "experts" / "9-mine.pt.tmp").write_text("mine")
    other = Run(run.directory)
    other.save(2, LAST)
    assert other.left() == {1, 2, 9}


def test_nothing_is_removed_while_a_checkpoint_cannot_be_read(run: Run) -> None:
    run.save(1, LAST)
    whole = (run.directory / LAST).read_bytes()
    (run.directory / "other.pt").write_bytes(b"PK\x03\x04" + b"?" * 100 + whole[-22:])
    run.save(2, LAST)
    assert run.left() == {1, 2}


def test_what_is_no_checkpoint_or_was_cut_short_does_not_matter(run: Run) -> None:
    (run.directory / ".training").touch()
    (run.directory / "train.log").write_text("loss 3")
    torch.save({"model": {}}, run.directory / "other.pt")
    torch.save([1], run.directory / "list.pt")
    run.save(1, LAST)
    (run.directory / "checkpoint_last.pt.cut-1").write_bytes((run.directory / LAST).read_bytes()[:200])
    run.save(2, LAST)
    assert run.left() == {2}


def test_files_of_a_save_without_a_checkpoint_go_at_the_next(run: Run) -> None:
    run.save(1, BEST)
    for number in (2, 3):
        run.save_nothing(number)
    assert run.left() == {1, 3}
    run.save(4, BEST)
    assert run.left() == {4}


@pytest.mark.parametrize(
    "content", [torch.zeros(3), {"model": torch.zeros(3)}, {"model": {KEY: torch.zeros(3)}}, [], None]
)
def test_other_files_beside_checkpoints_do_not_matter(run: Run, content: Any) -> None:
    torch.save(content, run.directory / "mine.pt")
    for number in (1, 2):
        run.save(number, LAST)
    assert run.left() == {2}


def test_a_file_that_is_not_read_keeps_all_and_is_named_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"x": Path("y")}, run.directory / "mine.pt")
    for number in (1, 2, 3):
        run.save(number, LAST)
    assert run.left() == {1, 2, 3}
    [line] = caplog.messages
    assert line.startswith(f"{run.directory / 'mine.pt'}: holds Python objects that safe loading refuses")


def test_a_checkpoint_is_read_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counting(path: Path) -> Any:
        read.append(path.name)
        return load(path)

    monkeypatch.setattr(own_files, "load", counting)
    for number in range(5):
        run.save(number, f"checkpoint{number}.pt", LAST)
    assert sorted(read) == sorted([*(f"checkpoint{number}.pt" for number in range(5)), *[LAST] * 5])
