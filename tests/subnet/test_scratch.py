"""Checkpoints written without being in memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.files.loading import load
from taskmoe_plugin.subnet import scratch
from taskmoe_plugin.subnet.scratch import Scratch, save_mapped


def test_tensors_are_what_their_parts_make(tmp_path: Path) -> None:
    made, told = Scratch(tmp_path, lambda count: told.append(count)), []
    parts = [torch.randn(2, 3), torch.randn(1, 3)]
    assert torch.equal(made.cat(iter(parts), 3), torch.cat(parts))
    assert torch.equal(made.stack(iter(parts[:1] * 4), 4), torch.stack(parts[:1] * 4))
    assert sum(told) == 4 * (9 + 24)


def test_what_is_in_memory_survives_that_pages_of_files_are_given_back(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(scratch, "AT_ONCE", 0)
    torch.save({"kept": torch.randn(100, 100)}, tmp_path / "before.pt")
    memory = [torch.randn(300, 300) for _ in range(3)]
    expected: dict[str, Any] = {}

    def make(made: Scratch) -> dict[str, Any]:
        loaded = load(tmp_path / "before.pt")
        made.take(loaded)
        state = {**loaded, "memory": memory, "made": made.cat(iter(memory), 900)}
        expected.update({"memory": torch.stack(memory), "made": torch.cat(memory), "kept": loaded["kept"].clone()})
        return state

    save_mapped(make, tmp_path / "after.pt", force=False)
    found = load(tmp_path / "after.pt")
    assert torch.equal(torch.stack(found["memory"]), expected["memory"])
    assert torch.equal(found["made"], expected["made"])
    assert torch.equal(found["kept"], expected["kept"])
    assert torch.equal(torch.stack(memory), expected["memory"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after.pt", "before.pt"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def make(made: Scratch) -> dict[str, Any]:
        made.stack([torch.ones(2)], 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_mapped(make, tmp_path / "one.pt", force=False)
    assert not list(tmp_path.iterdir())


WRITE = """
import sys
from pathlib import Path
import torch
from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.subnet.scratch import save_mapped
try:
    save_mapped(lambda made: made.cat(iter([torch.ones(10_000)]), 10_000), Path(sys.argv[1]), force=False)
except TaskMoEError as error:
    print(error)
"""


def test_without_room_for_a_tensor_there_is_a_line(tmp_path: Path) -> None:
    # As on a full disk, where writing to a page that has no room would end the process without a word.
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WRITE, str(tmp_path / "one.pt")], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)), check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"--output {tmp_path / 'one.pt'}: cannot be written (File too large)")
    assert not list(tmp_path.iterdir())
