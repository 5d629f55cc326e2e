"""Checkpoints written without being in memory."""

from __future__ import annotations

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

    save_mapped(make, tmp_path / "after.pt")
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
        save_mapped(make, tmp_path / "one.pt")
    assert not list(tmp_path.iterdir())
