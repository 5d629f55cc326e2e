"""The experts and weights of a task, as read from a checkpoint, are those the model routes with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils

from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.plan import Planner
from tests.helpers.corpus import LANGS, PAIRS, Corpus
from tests.helpers.tasks import make_task
from tests.subnet.helpers import write_model


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("gate", ["learned", "static"])
@pytest.mark.parametrize("routings", [("source", "target"), ("pair", "group")], ids="/".join)
def test_the_plan_has_the_gates_of_the_model(
    corpus: Corpus, trained: Path, tmp_path: Path, routings: tuple[str, str], gate: str, top_k: int
) -> None:
    flags = ("--encoder-moe-routing", routings[0], "--decoder-moe-routing", routings[1])
    path = write_model(
        corpus,
        trained / "checkpoint_last.pt",
        tmp_path / "full.pt",
        *flags,
        "--moe-task-gate",
        gate,
        "--moe-top-k",
        top_k,
    )
    [model], _ = checkpoint_utils.load_model_ensemble([str(path)], task=make_task(corpus))
    checkpoint = Checkpoint.open(path)
    for pair in PAIRS:
        plan = Planner(checkpoint).plan([pair])
        ids = tuple(LANGS.index(lang) + 1 for lang in pair.split("-"))
        for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
            with torch.no_grad():
                (expected,) = stack.tasks.gates().layers()
            task = stack.tasks.lookup[ids]
            experts, weights = plan.stacks[name].gates[1]
            assert torch.equal(experts[plan.stacks[name].task[pair]], expected.experts[task])
            assert torch.equal(weights[plan.stacks[name].task[pair]], expected.weights[task])


def test_one_expert_keeps_its_weight(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    path = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", "--moe-top-k", 1)
    _, weights = Planner(Checkpoint.open(path)).plan(["en-de"]).stacks["encoder"].gates[1]
    # Of the probability that a dealt expert begins with.
    assert weights.item() == pytest.approx(1.0, abs=0.3)
    assert weights.item() != 1.0
