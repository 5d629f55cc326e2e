"""The optimizer's state of parameters that have become experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
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


@pytest.mark.parametrize(
    ("moments", "groups", "message"),
    [
        ({"exp_avg_sq_row": torch.zeros(3)}, 1, "exp_avg_sq_row"),
        ({"exp_avg": torch.zeros(3)}, 2, "cannot be divided among experts"),
    ],
    ids=["another optimizer", "two groups"],
)
def test_a_state_that_is_not_known_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], moments: dict[str, Any], groups: int, message: str
) -> None:
    count = sum(each.requires_grad for each in build_model("transformer", **SHARED).parameters())
    group = {"lr": 0.1, "params": [*range(count)]}
    with pytest.raises(SystemExit):
        rewritten(tmp_path, "other", {"state": {0: {"step": 1, **moments}}, "param_groups": [group] * groups})
    error = capsys.readouterr().err
    assert message in error
    assert "leave out --optimizer" in error
