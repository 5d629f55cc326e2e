"""Files and directories appear complete or not at all, and what dead processes left is removed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.files import writing
from taskmoe_plugin.files.renaming import exchange
from taskmoe_plugin.files.writing import new_directory, new_file, new_files, save


def content(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def write_file(path: Path, text: str) -> None:
    with new_file(path, str(path)) as temporary:
        temporary.write_text(text)


def write_directory(path: Path, text: str) -> None:
    with new_directory(path, str(path)) as temporary:
        (temporary / "file").write_text(text)


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_file(tmp_path / "x", text)
        assert content(tmp_path) == {"x": text}


def test_a_directory_is_written_with_those_above_it_and_replaced(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_directory(tmp_path / "a" / "b", text)
        assert content(tmp_path) == {"a/b/file": text}
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b"]


@pytest.mark.parametrize("write", [write_file, write_directory])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_leaves_what_was_there(tmp_path: Path, monkeypatch, write, error) -> None:
    write(tmp_path / "x", "old")
    before = content(tmp_path)

    def fail(path: Path) -> None:
        raise error

    monkeypatch.setattr(writing, "_sync", fail)
    with pytest.raises(error):
        write(tmp_path / "x", "new")
    assert content(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 1


def test_what_the_system_says_is_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(TaskMoEError, match="--output x: cannot be written"),
        new_file(tmp_path / "no" / "x", "--output x"),
    ):
        pass
    with pytest.raises(TaskMoEError, match="cannot be written"):
        write_directory(tmp_path / "file" / "x", "new")
    with pytest.raises(TaskMoEError, match="File name too long") as caught:
        write_file(tmp_path / ("x" * 5000), "new")
    assert len(str(caught.value)) < 400
    assert content(tmp_path) == {"file": ""}


def test_files_take_the_places_of_their_predecessors_and_of_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for text in ("old", "new"):
        with new_files(tmp_path, ("a", "b"), "x") as temporary:
            (temporary / "a").write_text(text)
            if text == "old":
                (temporary / "b").write_text(text)
    assert content(tmp_path) == {"mine": "mine", "a": "new"}


LEAVE = """
import os, sys
from pathlib import Path
from taskmoe_plugin.files.writing import new_directory, new_file
place = Path(sys.argv[1])
with new_directory(place / "directory", "") as directory, new_file(place / "file", "") as file:
    (directory / "part").write_text("part")
    print("writing", flush=True)
    sys.stdin.read()
"""


def start(tmp_path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", LEAVE, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    living, killed = start(tmp_path), start(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    write_file(tmp_path / "file", "mine")
    write_directory(tmp_path / "directory", "mine")
    assert len(list(tmp_path.glob(".*"))) == 2
    living.communicate("")
    assert living.returncode == 0
    assert content(tmp_path) == {"file": "", "directory/part": "part"}
    assert not list(tmp_path.glob(".*"))


def test_two_names_are_exchanged(tmp_path: Path) -> None:
    write_directory(tmp_path / "a", "a")
    write_directory(tmp_path / "b", "b")
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert content(tmp_path) == {"a/file": "b", "b/file": "a"}
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "none")


def test_of_a_link_that_is_replaced_nothing_is_left_but_where_it_led(tmp_path: Path) -> None:
    write_directory(tmp_path / "store", "old")
    (tmp_path / "x").symlink_to(tmp_path / "store")
    write_directory(tmp_path / "x", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "x"]
    assert content(tmp_path) == {"store/file": "old", "x/file": "new"}


def test_without_an_exchange_both_are_kept_and_a_line_says_so(tmp_path: Path, monkeypatch, capsys) -> None:
    write_directory(tmp_path / "x", "old")
    monkeypatch.setattr(writing, "exchange", lambda one, other: False)
    write_directory(tmp_path / "x", "new")
    [kept] = tmp_path.glob("x.old-*")
    assert content(tmp_path) == {"x/file": "new", f"{kept.name}/file": "old"}
    assert f"{tmp_path / 'x'}: what was there before is now {kept}" in capsys.readouterr().err


@pytest.mark.parametrize("new", [new_file, new_directory])
def test_what_another_process_has_written_in_the_meantime_stays(tmp_path: Path, new: Any) -> None:
    path = tmp_path / "x"

    def write() -> None:
        with new(path, str(path), replace=False) as temporary:
            (temporary / "file" if temporary.is_dir() else temporary).write_text("mine")
            (write_directory if temporary.is_dir() else write_file)(path, "theirs")

    with pytest.raises(TaskMoEError, match="another process has written it in the meantime; give --force"):
        write()
    assert list(content(tmp_path).values()) == ["theirs"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("linked", [False, True])
def test_an_empty_directory_makes_room(tmp_path: Path, linked: bool) -> None:
    path, empty = tmp_path / "x", tmp_path / "empty"
    empty.mkdir()
    if linked:
        path.symlink_to(empty)
    else:
        path.mkdir()
    with new_directory(path, str(path), replace=False) as temporary:
        (temporary / "file").write_text("mine")
    assert content(tmp_path) == {"x/file": "mine"}
    assert not list(empty.iterdir())


def test_a_full_disk_is_what_torch_save_says(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        save({"w": torch.zeros(100_000)}, Path("/dev/full"))
    assert caught.value.errno == errno.ENOSPC
    assert not os.listdir(tmp_path)
