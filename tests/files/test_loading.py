"""A checkpoint is loaded safely or not at all, and the reason is the right one."""

from __future__ import annotations

import datetime
import os
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.files.loading import DamagedFile, MissingFile, RefusedFile, TruncatedFile, UnreadableFile, load

STATE = {"cfg": {"model": Namespace(arch="x")}, "model": {"w": torch.arange(1000.0)}, "numbers": list(range(200))}


class Foreign:
    """Its unpickling would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(STATE, tmp_path / "x.pt")
    return tmp_path / "x.pt"


def test_tensors_and_flags_are_loaded(path: Path) -> None:
    found = load(path)
    assert found["cfg"] == STATE["cfg"]
    assert torch.equal(found["model"]["w"], STATE["model"]["w"])


@pytest.mark.parametrize("variable", [None, "1"])
def test_a_foreign_object_is_refused_and_not_run_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    if variable:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", variable)
    torch.save({**STATE, "more": Foreign(tmp_path / "trace")}, tmp_path / "x.pt")
    with pytest.raises(RefusedFile, match=r"safe loading refuses \(\w+\.system\)"):
        load(tmp_path / "x.pt")
    assert not (tmp_path / "trace").exists()


def test_a_class_that_is_not_allowed_is_named(tmp_path: Path) -> None:
    torch.save({**STATE, "when": datetime.datetime(2026, 1, 1)}, tmp_path / "x.pt")
    with pytest.raises(RefusedFile, match=r"datetime\.datetime"):
        load(tmp_path / "x.pt")


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_what_lacks_its_end_is_truncated(path: Path, kept: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(TruncatedFile, match="truncated"):
        load(path)


def test_a_flipped_bit_of_the_pickle_is_never_called_truncated(path: Path) -> None:
    content = path.read_bytes()
    start = content.index(b"data.pkl") + 60
    kinds, said = set(), ""
    for offset in range(start, start + 400, 7):
        changed = bytearray(content)
        changed[offset] ^= 0x10
        path.write_bytes(changed)
        try:
            load(path)
        except (DamagedFile, RefusedFile) as error:
            kinds.add(type(error))
            said += str(error)
    assert DamagedFile in kinds
    assert "weights_only" not in said


def test_text_is_no_checkpoint(path: Path) -> None:
    path.write_text("no checkpoint")
    with pytest.raises(DamagedFile, match="no PyTorch checkpoint"):
        load(path)


def test_a_missing_file_is_called_missing(tmp_path: Path, path: Path) -> None:
    for missing in (tmp_path / "none.pt", path / "below.pt"):
        with pytest.raises(MissingFile, match="no such file"):
            load(missing)


def test_what_the_system_refuses_comes_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="Is a directory"):
        load(tmp_path)
    # Reading a process's memory at its start is an I/O error.
    (tmp_path / "x.pt").symlink_to("/proc/self/mem")
    with pytest.raises(UnreadableFile, match="Input/output error"):
        load(tmp_path / "x.pt")
    with pytest.raises(UnreadableFile, match="File name too long"):
        load(tmp_path / ("x" * 5000))


def test_what_has_no_end_or_waits_for_a_writer_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pt")
    for path in (tmp_path / "x.pt", Path("/dev/zero")):
        with pytest.raises(UnreadableFile, match="is no regular file"):
            load(path)


def test_a_name_that_pytorch_cannot_open_is_no_damage(path: Path) -> None:
    renamed = path.with_name(os.fsdecode(b"\xff.pt"))
    path.rename(renamed)
    with pytest.raises(UnreadableFile, match="has a name that is no UTF-8"):
        load(renamed)


def test_a_flipped_bit_in_a_flag_is_damage(path: Path) -> None:
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = content.index(archive.read("x/data.pkl"))
        size = archive.getinfo("x/data.pkl").file_size
    for place in range(start, start + size, 7):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises((DamagedFile, RefusedFile)):
            load(path)


def test_a_file_without_sums_is_loaded(path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(load(path)["model"]["w"], STATE["model"]["w"])
