"""The mean of the last checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import average
from text import TextError


def save(directory: Path, epoch: int, updates: int, **more: object) -> None:
    weights = {
        "encoder.fc1.weight": torch.full((2, 3), float(updates), dtype=torch.float16),
        "encoder.version": torch.tensor([updates]),
    }
    weights["decoder.fc1.weight"] = weights["encoder.fc1.weight"]
    state = {"model": weights | more, "last_optimizer_state": {"step": updates}, "cfg": {"updates": updates}}
    torch.save(state, directory / f"checkpoint_{epoch}_{updates}.pt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for epoch, updates in ((1, 900), (1, 1000), (2, 2000), (10, 10000)):
        save(tmp_path, epoch, updates)
    for name in ("checkpoint_best.pt", "checkpoint_last.pt", "checkpoint2.pt"):
        (tmp_path / name).touch()
    return tmp_path


def test_the_last_ones_are_those_of_the_most_updates(folder: Path) -> None:
    names = [path.name for path in average.last_checkpoints(folder, 3)]
    assert names == ["checkpoint_1_1000.pt", "checkpoint_2_2000.pt", "checkpoint_10_10000.pt"]


def test_weights_are_means_and_the_rest_is_the_last_ones(folder: Path) -> None:
    state = average.average(average.last_checkpoints(folder, 2))
    weight = state["model"]["encoder.fc1.weight"]
    assert weight.dtype == torch.float16
    assert weight.tolist() == [[6000.0] * 3] * 2
    assert state["model"]["encoder.version"].tolist() == [10000]
    assert state["cfg"] == {"updates": 10000}
    assert "last_optimizer_state" not in state
    assert state["model"]["decoder.fc1.weight"] is weight


def test_too_few_checkpoints_are_one_clear_line(folder: Path) -> None:
    with pytest.raises(TextError, match=r"has 4 checkpoints checkpoint_EPOCH_UPDATES\.pt, not 5"):
        average.last_checkpoints(folder, 5)


def test_models_that_differ_are_not_averaged(folder: Path) -> None:
    save(folder, 11, 11000, more=torch.zeros(1))
    with pytest.raises(TextError, match="has other weights than"):
        average.average(average.last_checkpoints(folder, 2))


def test_experts_in_other_files_are_not_left_out(folder: Path) -> None:
    for updates in (11000, 12000):
        save(folder, 11, updates, taskmoe_experts={"files": ["experts/1.pt"]})
    with pytest.raises(TextError, match="its experts are in other files"):
        average.average(average.last_checkpoints(folder, 2))
