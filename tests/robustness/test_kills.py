"""A command that is killed at any moment leaves what was there, or what it was to write, and the next one cleans up."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from taskmoe_plugin.files.loading import load
from tests.robustness.cases import ENTRY_POINTS, TRAIN
from tests.robustness.running import PATIENCE, lay_out, run

MOMENTS = 20


@dataclass(frozen=True)
class Writer:
    """A command that writes, one row of the table.

    Attributes:
        command: its arguments.
        output: what it writes, a file or a directory.
        old: the files that are there before, relative to the output ("" for the output itself).
        whole: whether all its files appear at once.
    """

    command: tuple[Any, ...]
    output: str
    old: tuple[str, ...] = ()
    whole: bool = True


def _of(name: str, *flags: str) -> tuple[Any, ...]:
    return (*ENTRY_POINTS[name].command, *flags)


WRITERS = {
    "extract": Writer(_of("extract"), "out/en-de"),
    "extract --force": Writer(_of("extract", "--force"), "out/en-de", ("model.pt", "mine")),
    "extract ctranslate2 --force": Writer(_of("extract ctranslate2", "--force"), "out/en-de", ("model.bin",)),
    "consolidate": Writer(_of("consolidate"), "out.pt"),
    "consolidate --force": Writer(_of("consolidate", "--force"), "out.pt", ("",)),
    "convert join --force": Writer(_of("convert join", "--force"), "out.pt", ("",)),
    **{
        f"convert {what}": Writer(_of(f"convert {what}"), "out.pt")
        for what in ("moefy", "prune", "quantize", "upcycle")
    },
    "report --force": Writer(_of("report", "--force"), "out", ("report.json", "mine"), whole=False),
}


def contents(output: Path) -> dict[str, bytes]:
    """The files of an output, without those that are temporary."""
    if output.is_file():
        return {"": output.read_bytes()}
    found = {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(".")}


def temporaries(place: Path) -> list[Path]:
    return [path for path in place.rglob(".*") if path.name != ".training"]


def moments(seed: int) -> list[float]:
    """Shares of a command's time, one in each of as many parts of it."""
    random = Random(seed)
    return [(part + random.random()) / MOMENTS for part in range(MOMENTS)]


def put(old: tuple[str, ...], output: Path) -> None:
    """Put in place what is there before a command."""
    if output.is_dir():
        shutil.rmtree(output)
    output.unlink(missing_ok=True)
    for name in old:
        path = output / name if name else output
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"old")


@pytest.mark.parametrize("name", WRITERS)
def test_what_a_killed_command_leaves_is_old_or_new(
    world: Path, tmp_path: Path, name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, place = WRITERS[name], tmp_path / "case"
    lay_out(world, place)
    monkeypatch.chdir(place)
    output = place / writer.output
    put(writer.old, output)
    old = contents(output)
    # The first run of a command in a process of its own still imports something.
    seconds, new, killed = float(PATIENCE), old, 0
    for _ in range(2):
        put(writer.old, output)
        undisturbed = run(writer.command, tmp_path / "output")
        assert undisturbed.status == 0, undisturbed.errors
        seconds, new = min(seconds, undisturbed.seconds), contents(output)
    for share in moments(seed):
        put(writer.old, output)
        killed += run(writer.command, tmp_path / "output", kill_after=share * seconds).status < 0
        found = contents(output)
        if writer.whole:
            assert found in (old, new)
        else:
            assert all(content in (old.get(each), new.get(each)) for each, content in found.items())
    assert killed >= MOMENTS // 4
    put(writer.old, output)
    assert run(writer.command, tmp_path / "output").status == 0
    assert contents(output) == new
    assert not temporaries(place)


def test_a_training_that_is_killed_again_and_again_goes_on(
    world: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "case"
    lay_out(world, place)
    monkeypatch.chdir(place)
    command = (
        *TRAIN,
        "--max-update",
        6,
        "--save-interval-updates",
        1,
        "--no-epoch-checkpoints",
        "--disable-validation",
    )
    undisturbed = run((*command, "--save-dir", "other"), tmp_path / "output")
    assert undisturbed.status == 0, undisturbed.errors[-5:]
    for share in moments(seed):
        ended = run(command, tmp_path / "output", kill_after=share * undisturbed.seconds)
        assert ended.status <= 0, ended.errors[-5:]
    assert run(command, tmp_path / "output").status == 0
    found, expected = (load(place / each / "checkpoint_last.pt") for each in ("save", "other"))
    updates = [state["optimizer_history"][-1]["num_updates"] for state in (found, expected)]
    # fairseq does one more update whenever a training that has ended is started again.
    assert updates[0] >= updates[1] == 6
