"""Files of experts: what is put together of them is what one process would have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.optim.adafactor import Adafactor
from fairseq.optim.nag import NAG
from torch import Tensor, nn

from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.parallel.manifest import is_stacked, make_manifest
from taskmoe_plugin.parallel.placement import held_by
from taskmoe_plugin.parallel.shards import ExpertShards, write_shard
from taskmoe_plugin.parallel.spread_experts import SpreadExperts
from tests.helpers.models import build_model

EXPERTS = 4
SHAPES = {
    "encoder.layers.1.moe.experts.fc1_weight": (EXPERTS, 3, 5),
    "encoder.layers.1.moe.experts.fc1_bias": (EXPERTS, 3),
}
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    "nag": lambda parameters: NAG(parameters, lr=0.1, momentum=0.9),
    "adafactor": lambda parameters: Adafactor(parameters, lr=0.1, relative_step=False, scale_parameter=False),
}


def optimizer_states(make: Callable[[Any], Any], experts: range) -> dict[str, Any]:
    """The state of an optimizer that has some of the experts, after three updates, by the parameters' names."""
    generator = torch.Generator().manual_seed(0)
    parameters = {name: nn.Parameter(torch.ones(shape)[experts.start : experts.stop]) for name, shape in SHAPES.items()}
    optimizer = make(list(parameters.values()))
    for _ in range(3):
        for name, parameter in parameters.items():
            parameter.grad = torch.randn(SHAPES[name], generator=generator)[experts.start : experts.stop].clone()
        optimizer.step()
    return {name: optimizer.state[parameter] for name, parameter in parameters.items()}


def write(directory: Path, processes: int, states: Callable[[range], dict[str, Any]]) -> ExpertShards:
    """The files of some processes, with the numbers of experts for weights."""
    manifest = make_manifest("0", processes, EXPERTS, SHAPES)
    for process, file in enumerate(manifest["files"]):
        held = held_by(process, processes, EXPERTS)
        weights = {
            name: torch.stack([torch.full(shape[1:], float(each)) for each in held]) for name, shape in SHAPES.items()
        }
        write_shard(directory / file, file, weights, states(held), dict.fromkeys(SHAPES, 0))
    return ExpertShards(manifest, [directory], "x.pt")


def tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    # Adafactor also notes the norm of the parameter, which it computes anew in each update.
    return {key: torch.as_tensor(value, dtype=torch.float32) for key, value in state.items() if key != "RMS"}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_state_of_all_experts_is_that_of_an_optimizer_that_has_them_all(
    tmp_path: Path, kind: str, processes: int, name: str
) -> None:
    shards = write(tmp_path, processes, lambda held: optimizer_states(OPTIMIZERS[kind], held))
    found = shards.optimizer_state(name, range(EXPERTS))
    expected = optimizer_states(OPTIMIZERS[kind], range(EXPERTS))[name]
    torch.testing.assert_close(tensors(found), tensors(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("into", [1, 2, 4])
def test_any_number_of_processes_reads_its_experts_from_any_number_of_files(
    tmp_path: Path, processes: int, into: int
) -> None:
    shards = write(tmp_path, processes, lambda held: {name: {} for name in SHAPES})
    for name, shape in SHAPES.items():
        assert shards.shape(name) == shape
        for process in range(into):
            held = held_by(process, into, EXPERTS)
            assert shards.part(name, held).flatten(1).unique(dim=1).flatten().tolist() == list(held)


class OneOfTwo:
    """A group of two processes of which this is the first."""

    size, rank = 2, 0

    def held(self, experts: int) -> range:
        return held_by(0, 2, experts)


@pytest.mark.parametrize("spread", [False, True])
def test_a_checkpoint_with_another_number_of_experts_is_refused(tmp_path: Path, spread: bool) -> None:
    # Slices of more experts would fit; gates that are dealt do not know how many there are.
    flags = {"moe_task_gate": "static"}
    state = build_model(moe_expert_count=8, **flags).state_dict()
    if spread:
        weights = {name: state.pop(name) for name in list(state) if is_stacked(name)}
        manifest = make_manifest("0", 1, 8, weights)
        (file,) = manifest["files"]
        write_shard(tmp_path / file, file, weights, {name: {} for name in weights}, dict.fromkeys(weights, 0))
        state["expert_shards"] = manifest
    model = build_model(moe_expert_count=2, **flags)
    SpreadExperts(model, OneOfTwo(), 4, [tmp_path], "the checkpoint")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--moe-expert-count 4: the checkpoint has 8 experts in each layer; give 8"):
        model.load_state_dict(state)
