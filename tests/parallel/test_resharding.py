"""Checkpoints of spread experts: what is in their files, and that any number of processes goes on from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.parallel.manifest import is_stacked
from tests.helpers.corpus import Corpus
from tests.parallel.scenarios import ADAM, OUR_ADAM, RESHARDED, STAGES
from tests.parallel.test_same_training import assert_near, whole
from tests.parallel.training import make_trainer, run_updates, stage_directory

# With Adafactor, biases are near only: of those of its own experts alone, a process knows the mean over experts.
WITHIN = {"memory-efficient-bf16": 0.03, "adafactor": 2e-4}


def results(corpus: Corpus, name: str, stage: int) -> list[list[dict[str, Any]]]:
    directory = stage_directory(corpus, name, stage)
    return [torch.load(directory / f"result-{rank}") for rank in range(STAGES[stage][0])]


@pytest.mark.parametrize("name", RESHARDED)
@pytest.mark.parametrize("stage", range(4))
def test_1_2_4_and_1_processes_train_on_as_the_unbroken_run(
    unbroken: dict[str, Any], corpus: Corpus, name: str, stage: int
) -> None:
    found = results(corpus, name, stage)
    for update, expected in enumerate(unbroken[name][STAGES[stage][1]]):
        weights = whole([process[update]["weights"] for process in found], spread=len(found) > 1)
        assert_near(weights, expected["weights"], WITHIN.get(name, 1e-5))


@pytest.mark.parametrize("name", RESHARDED)
def test_a_process_alone_saves_a_checkpoint_in_one_file(unbroken: Any, corpus: Corpus, name: str) -> None:
    for stage in (0, 3):
        directory = stage_directory(corpus, name, stage)
        assert not (directory / "experts").exists()
        model = torch.load(directory / "checkpoint_last.pt", weights_only=True)["model"]
        assert [model[each].size(0) for each in model if is_stacked(each)] == ([] if name == "no-experts" else [4] * 8)
        assert "expert_shards" not in model


@pytest.mark.parametrize("stage", [1, 2])
def test_each_process_saves_its_experts_and_the_first_all_else(unbroken: Any, corpus: Corpus, stage: int) -> None:
    directory, processes = stage_directory(corpus, "adam", stage), STAGES[stage][0]
    state = torch.load(directory / "checkpoint_last.pt", weights_only=True)
    alone = torch.load(stage_directory(corpus, "adam", 0) / "checkpoint_last.pt", weights_only=True)
    files = state["model"].pop("expert_shards")["files"]
    assert len(files) == processes
    shards = [torch.load(directory / file, weights_only=True) for file in files]
    for shard in shards:
        assert sorted([*state["model"], *shard["model"]]) == sorted(alone["model"])
        assert {each.size(0) for each in shard["model"].values()} == {4 // processes}
        assert shard["optimizer"].keys() == shard["model"].keys()
        assert all(each["exp_avg"].abs().sum() >= 0 for each in shard["optimizer"].values())
    states = len(state["last_optimizer_state"]["state"]) + len(shards[0]["optimizer"])
    assert states == len(alone["last_optimizer_state"]["state"])


@pytest.mark.parametrize(("name", "then"), [("adam", OUR_ADAM), ("noise", ADAM)], ids=["to ours", "to fairseq's"])
def test_fairseqs_adam_and_ours_take_up_each_others_experts(
    unbroken: Any, corpus: Corpus, tmp_path: Path, name: str, then: tuple[Any, ...]
) -> None:
    before, after = (stage_directory(corpus, name, stage) / "checkpoint_last.pt" for stage in (2, 3))
    scenario = replace(RESHARDED[name], training=then)
    trainer = make_trainer(corpus, scenario, 1, 0, tmp_path, before)
    trainer.load_checkpoint(str(before))
    run_updates(trainer, scenario.updates[STAGES[3][1]], 1, 0)
    # Moments, unlike weights, are the same wherever epsilon acts.
    expected = torch.load(after, weights_only=True)["last_optimizer_state"]["state"]
    torch.testing.assert_close(trainer.optimizer.state_dict()["state"], expected)
