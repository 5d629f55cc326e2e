"""Whatever is wrong with a file: one line that says so, and everything that was there stays as it was."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from tests.robustness.cases import ENTRY_POINTS, Case, cases
from tests.robustness.damages import trace
from tests.robustness.running import lay_out, run

OTHERS = ("train", "generate", "interactive", "validate")  # fairseq's commands


def contents(directory: Path) -> dict[str, bytes | None]:
    """Every file that is there, byte by byte; directories and links are None."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in directory.rglob("*")
    }


@pytest.mark.parametrize("name", [name for name, entry_point in ENTRY_POINTS.items() if not entry_point.long])
def test_a_command_succeeds_as_long_as_nothing_is_wrong(
    world: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "case"
    lay_out(world, place)
    monkeypatch.chdir(place)
    ended = run(ENTRY_POINTS[name].command, tmp_path / "output")
    assert ended.status == 0, ended.errors


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_damaged_file_is_named_in_one_line(
    world: Path, tmp_path: Path, case: Case, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "case"
    lay_out(world, place)
    [path] = place.glob(ENTRY_POINTS[case.entry_point].reads[case.kind])
    case.wanted.damage(path, Random(f"{case.name} {seed}"))
    before = contents(place)
    monkeypatch.chdir(place)
    ended = run(ENTRY_POINTS[case.entry_point].command, tmp_path / "output")
    assert not trace(path).exists(), "a foreign pickle was run"
    after = contents(place)
    assert {name: content for name, content in after.items() if name in before} == before
    if case.wanted.harmless and ended.status == 0:
        return
    assert ended.status in (1, 2), (ended.status, ended.errors)
    # fairseq logs its models there, in many lines.
    errors = [line for line in ended.errors if ": error: " in line or not case.entry_point.startswith(OTHERS)]
    assert len(errors) == 1, errors
    [line] = errors
    assert line == ended.errors[-1]
    assert ": error: " in line
    assert not [each for each in ended.errors if "Traceback" in each]
    # Of the two files of a set, either may be the one that is found wrong; a pair's name stands for both.
    known = {path.name, path.with_suffix(".bin").name, path.with_suffix(".idx").name, "en-de", os.fspath(path)}
    assert any(name in line for name in known), line
    assert not case.wanted.words or any(word.lower() in line.lower() for word in case.wanted.words), line
    new = [name for name in after if name not in before and not name.startswith("save")]
    assert not [name for name in new if name.removeprefix("out")], new
