"""What says where experts are, and the files that hold them, are not believed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.parallel.manifest import Manifest, make_manifest
from taskmoe_plugin.parallel.shards import ExpertShards, write_shard

NAMES = tuple(f"encoder.layers.1.moe.experts.fc{part}_weight" for part in (1, 2))
GOOD = make_manifest("0", 2, 4, NAMES)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ("text", "does not name experts"),
        ({"experts": 4}, "does not name experts"),
        ({**GOOD, "experts": 0}, "number of experts"),
        ({**GOOD, "experts": "4"}, "number of experts"),
        ({**GOOD, "experts": True}, "number of experts"),
        ({**GOOD, "experts": 4.0}, "number of experts"),
        ({**GOOD, "experts": 5}, "5 experts are not in 2 files"),
        ({**GOOD, "files": []}, "4 experts are not in 0 files"),
        ({**GOOD, "files": [GOOD["files"][0]] * 2}, "4 experts are not in 1 files"),
        ({**GOOD, "files": GOOD["files"][0]}, "not of the folder 'experts'"),
        ({**GOOD, "files": [1, 2]}, "not of the folder 'experts'"),
        ({**GOOD, "files": ["/etc/passwd"]}, "not of the folder 'experts'"),
        ({**GOOD, "files": ["experts/../../x.pt"]}, "not of the folder 'experts'"),
        ({**GOOD, "files": [f"experts/{'x' * 5000}.pt"]}, "not of the folder 'experts'"),
        ({**GOOD, "parameters": None}, "the parameters are not"),
        ({**GOOD, "parameters": ["encoder.embed_tokens.weight"]}, "the parameters are not"),
    ],
    ids=str,
)
def test_a_damaged_manifest_is_refused(changed: Any, problem: str) -> None:
    with pytest.raises(TaskMoEError, match=rf"^x\.pt: what it says of its experts' files is damaged \(.*{problem}"):
        ExpertShards(changed, [Path()], "x.pt")


def test_a_manifest_is_read() -> None:
    found = Manifest.read(GOOD, "x.pt")
    assert (found.experts, found.each, list(found.files)) == (4, 2, GOOD["files"])
    assert found.parameters == NAMES


def contents(file: str) -> dict[str, Any]:
    state = {name: {"exp_avg": torch.zeros(2, 3, 5), "step": 1} for name in NAMES}
    return {
        "file": file,
        "model": {name: torch.zeros(2, 3, 5) for name in NAMES},
        "optimizer": state,
        "numbers": dict.fromkeys(NAMES, 0),
    }


def spoilt(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    def changed(shard: dict[str, Any]) -> dict[str, Any]:
        change(shard)
        return shard

    return changed


def remove(kind: str) -> Callable[[dict[str, Any]], Any]:
    return spoilt(lambda shard: shard.pop(kind))


def put(kind: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return spoilt(lambda shard: shard[kind].update({NAMES[1]: value}))


@pytest.mark.parametrize(
    "change",
    [
        *map(remove, ("model", "optimizer", "numbers")),
        *(put("model", value) for value in (None, 1.0, torch.tensor(1.0), torch.zeros(1, 3, 5), torch.zeros(2, 3, 4))),
        *(put("optimizer", value) for value in (None, [1], {"exp_avg": torch.zeros(1, 3, 5), "step": 1}, {"step": 1})),
        put("numbers", "1"),
        spoilt(lambda shard: shard.update(model=[torch.zeros(2, 3, 5)])),
    ],
)
def test_a_file_without_what_its_checkpoint_says_is_named(tmp_path: Path, change: Callable[..., Any]) -> None:
    (tmp_path / "experts").mkdir()
    first, second = GOOD["files"]
    torch.save(contents(first), tmp_path / first)
    torch.save(change(contents(second)), tmp_path / second)
    shards = ExpertShards(GOOD, [tmp_path], "x.pt")
    with pytest.raises(TaskMoEError) as caught:
        shards.optimizer_state(NAMES[1], range(4))
    assert str(caught.value).startswith(f"{tmp_path / second}: does not have 2 experts of {NAMES[0][:-9]}")
    assert str(caught.value).endswith(", as x.pt says; restore the files that were there")


@pytest.mark.parametrize("shard", [[], "text", {"file": 3}, {"model": {}}])
def test_a_file_that_is_none_of_experts_is_named(tmp_path: Path, shard: Any) -> None:
    (tmp_path / "experts").mkdir()
    for file in GOOD["files"]:
        torch.save(shard, tmp_path / file)
    with pytest.raises(TaskMoEError, match=r"is of another run or save \(no file of experts\)"):
        ExpertShards(GOOD, [tmp_path], "x.pt").shape(NAMES[0])


def test_a_thousand_million_experts_are_not_looked_for(tmp_path: Path) -> None:
    manifest = {**GOOD, "experts": 10**9}
    for file in GOOD["files"]:
        found = contents(file)
        write_shard(tmp_path / file, file, found["model"], found["optimizer"], found["numbers"])
    for ask in (ExpertShards.shape, ExpertShards.__getitem__, ExpertShards.nbytes):
        with pytest.raises(TaskMoEError, match="does not have 500000000 experts of"):
            ask(ExpertShards(manifest, [tmp_path], "x.pt"), NAMES[0])


def test_a_folder_that_cannot_be_read_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = os.stat

    def refused(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if "experts/" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", refused)
    shards = ExpertShards(GOOD, [tmp_path], "x.pt")
    with pytest.raises(TaskMoEError, match=r"experts/0-0of2\.pt: cannot be read \(Permission denied\)"):
        shards.check_complete()
