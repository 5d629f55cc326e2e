"""The optimizer's state of parameters that have become experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from taskmoe_plugin.cli.main import main
from tests.convert.checkpoints import load
from tests.convert.test_upcycle import SHARED, write_dense
from tests.helpers.models import build_model, build_model_of


def rewritten(tmp_path: Path, name: str, optimizer: dict[str, Any]) -> dict[str, Any]:
    dense = write_dense(tmp_path / f"{name}.pt")
    state = load(dense)
    state["last_optimizer_state"] = optimizer
    torch.save(state, dense)
    main(["convert", "upcycle", str(dense), "--output", str(tmp_path / f"{name}-sparse.pt"), "--optimizer"])
    return load(tmp_path / f"{name}-sparse.pt")


def test_a_row_of_all_parameters_is_rewritten_as_one_of_each(tmp_path: Path) -> None:
    parameters = [each for each in build_model("transformer", **SHARED).parameters() if each.requires_grad]
    moments = [{"exp_avg": torch.randn(each.shape), "exp_avg_sq": torch.rand(each.shape)} for each in parameters]
    each = {"state": dict(enumerate({"step": 5, **own} for own in moments)), "loss_scale": 2.0}
    row = {key: torch.cat([own[key].flatten() for own in moments]) for key in ("exp_avg", "exp_avg_sq")}
    flat = {"state": {0: {"step": 5, **row}}, "loss_scale": 2.0}
    group = {"lr": 0.1}
    by_parameter = rewritten(tmp_path, "each", {**each, "param_groups": [{**group, "params": [*range(len(moments))]}]})
    in_a_row = rewritten(tmp_path, "flat", {**flat, "param_groups": [{**group, "params": [0]}]})
    state = by_parameter["last_optimizer_state"]
    names = [name for name, _ in build_model_of(by_parameter["cfg"]["model"]).named_parameters()]
    shapes = [each.shape for each in build_model_of(by_parameter["cfg"]["model"]).parameters()]
    assert state["param_groups"] == [{**group, "params": list(range(len(names)))}]
    assert state["loss_scale"] == 2.0
    # Only gates are new.
    assert {names[number] for number in range(len(names)) if number not in state["state"]} == {
        f"{stack}.tasks.gates.{part}" for stack in ("encoder", "decoder") for part in ("embedding", "weight")
    }
    for key in row:
        parts = [
            state["state"][number][key] if number in state["state"] else torch.zeros(shape)
            for number, shape in enumerate(shapes)
        ]
        assert [part.shape for part in parts] == shapes
        [found] = in_a_row["last_optimizer_state"]["state"].values()
        assert torch.equal(found[key], torch.cat([part.flatten() for part in parts]))
    history = by_parameter["optimizer_history"][-1]
    assert history["criterion_name"] == "TaskMoELabelSmoothedCrossEntropyCriterion"
