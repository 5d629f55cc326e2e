"""Further test sets, from a folder that is as sacrebleu and mtdata leave it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import get_test_set
from tests.examples import wmt_standin
from tests.examples.commands import error_line, run_step
from text import Direction, TextError


def run(folder: Path, name: str, pairs: str) -> subprocess.CompletedProcess[str]:
    directories = ("--download-dir", folder / "download", "--output-dir", folder / "text")
    return run_step("get_test_set.py", "--name", name, "--lang-pairs", pairs, *directories)


def test_the_reference_that_was_scored_officially_is_taken(tmp_path: Path) -> None:
    rows = [row[::-1] for row in wmt_standin.rows("cs")[:4]]
    wmt_standin.write_wmt22(tmp_path / "download", "en", "cs", rows, "B")
    assert run(tmp_path, "wmt22", "en-cs,en-gu").returncode == 0
    assert (tmp_path / "text" / "directions").read_text() == "en-cs\n"
    assert (tmp_path / "text" / "test.en-cs.cs").read_text().splitlines() == [czech for _, czech in rows]


def test_sentences_without_a_reference_are_left_out(tmp_path: Path) -> None:
    rows = [("one ", "eins"), ("two", ""), ("three", "drei\u00a0mal")]
    paths = tmp_path / "a", tmp_path / "b"
    wmt_standin.write(paths, rows)
    assert list(get_test_set.rows(paths)) == [("one", "eins"), ("three", "drei mal")]


@pytest.mark.parametrize(
    ("name", "pairs", "expected"),
    [
        ("wmt99", "en-de", "--name wmt99: not a test set of sacrebleu (see sacrebleu --list), nor flores200"),
        ("wmt22", "en-gu", "--name wmt22: has none of the directions en-gu"),
        ("flores200", "de-fr,en-xx", "--name flores200: has none of the directions de-fr,en-xx"),
    ],
)
def test_what_there_is_not_is_one_clear_line(tmp_path: Path, name: str, pairs: str, expected: str) -> None:
    assert error_line(run(tmp_path, name, pairs)) == f"get_test_set.py: error: {expected}"
    assert not (tmp_path / "text").exists()


def test_mtdata_is_asked_for_flores_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def run_mtdata(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        commands.append(command[4:])
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(get_test_set.subprocess, "run", run_mtdata)
    monkeypatch.setattr(get_test_set.importlib.util, "find_spec", lambda name: name)
    wmt_standin.write_flores(tmp_path, "ces", wmt_standin.rows("cs"))
    found = get_test_set.get_flores([Direction("en", "cs")], tmp_path)
    assert [path.suffix for path in found[Direction("en", "cs")]] == [".eng", ".ces"]
    assert commands == []
    with pytest.raises(TextError, match="mtdata could not get Flores-flores200_devtest-1-eng-zho_Hans"):
        get_test_set.get_flores([Direction("zh", "en")], tmp_path)
    out = str(tmp_path / "mtdata" / "flores200" / "zho_Hans")
    corpus = "Flores-flores200_devtest-1-eng-zho_Hans"
    assert commands == [["--langs", "zho_Hans-eng", "--test", corpus, "--out", out]]
