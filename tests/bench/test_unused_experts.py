"""What an update does to experts that no token used: their gradient is zero, and the optimizer goes on from there."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from fairseq.optim.adam import Adam
from torch import Tensor, nn
from torch.nn import functional as F

from taskmoe_plugin.moe import Experts, MoELayer, StaticTaskGates, TaskGates, Tokens, routings_of_units

WIDTH, TASKS, ROWS, LENGTH = 8, 8, 16, 4
NAMES = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")


@dataclass(frozen=True)
class Model:
    """A layer that routes by task."""

    gates: TaskGates | StaticTaskGates
    layer: MoELayer

    def __call__(self, x: Tensor, task: Tensor) -> Tensor:
        tokens = Tokens.from_padding(torch.zeros(ROWS, LENGTH, dtype=torch.bool))
        share = torch.full((TASKS,), 1 / TASKS)
        (routing,) = routings_of_units(self.gates(), task[tokens.row], tokens, share, by_task=True)
        return self.layer(x, routing)[0]  # type: ignore[no-any-return]

    def parameters(self) -> list[Tensor]:
        return [*self.gates.parameters(), *self.layer.parameters()]


def make_model(gates: TaskGates | StaticTaskGates, experts: int = 16) -> Model:
    return Model(gates, MoELayer(experts, Experts(experts, WIDTH, 16, F.relu)))


def one(task: int) -> Tensor:
    return torch.full((ROWS,), task)


def noise() -> Tensor:
    return torch.randn(LENGTH, ROWS, WIDTH)


def update(model: Model, optimizer: Adam, x: Tensor, y: Tensor, task: Tensor) -> None:
    """One update as fairseq makes it."""
    for parameter in model.parameters():
        parameter.grad = None
    F.mse_loss(model(x, task), y).backward()
    optimizer.step()


def stacked(model: Model) -> list[Tensor]:
    return [getattr(model.layer.experts, name) for name in NAMES]


def moved(before: list[Tensor], after: list[Tensor]) -> set[int]:
    """The experts of which any parameter has changed."""
    differs = [(old != new).flatten(1).any(1) for old, new in zip(before, after)]
    return set(torch.stack(differs).any(0).nonzero().flatten().tolist())


def test_unused_experts_have_gradients_of_zeros() -> None:
    torch.manual_seed(0)
    model = make_model(StaticTaskGates(1, TASKS, 16, 2))
    F.mse_loss(model(noise(), one(1)), noise()).backward()
    for parameter in stacked(model):
        assert parameter.grad is not None
        used = parameter.grad.flatten(1).any(1).nonzero().flatten().tolist()
        assert used == [1, 9]


def test_adam_leaves_experts_that_were_never_used_where_they_are() -> None:
    torch.manual_seed(0)
    model = make_model(StaticTaskGates(1, TASKS, 16, 2))
    before, optimizer = copy.deepcopy(stacked(model)), Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        update(model, optimizer, noise(), noise(), one(1))
    assert moved(before, stacked(model)) == {1, 9}


def test_adam_moves_experts_on_by_their_momentum_when_they_are_not_used() -> None:
    torch.manual_seed(0)
    model = make_model(StaticTaskGates(1, TASKS, 16, 2))
    optimizer = Adam(model.parameters(), lr=0.1)
    update(model, optimizer, noise(), noise(), one(1))
    before = copy.deepcopy(stacked(model))
    update(model, optimizer, noise(), noise(), one(2))
    assert moved(before, stacked(model)) == {1, 2, 9, 10}


def test_weight_decay_reaches_unused_experts_too() -> None:
    torch.manual_seed(0)
    model = make_model(StaticTaskGates(1, TASKS, 16, 2))
    before, optimizer = copy.deepcopy(stacked(model)), Adam(model.parameters(), lr=0.1, weight_decay=0.5)
    update(model, optimizer, noise(), noise(), one(1))
    for old, new in zip(before, stacked(model)):
        torch.testing.assert_close(new[0], old[0] * (1 - 0.1 * 0.5))


def losses(mixed: bool, updates: int = 600) -> tuple[float, float]:
    """Loss on new data of all tasks before and after learning one random network for each task.

    Args:
        mixed: whether the rows of a batch are of random tasks, as fairseq's are, or all of one.
        updates: how many, at a learning rate that falls to 0.
    """
    torch.manual_seed(0)
    teachers = [nn.Sequential(nn.Linear(WIDTH, 12), nn.ReLU(), nn.Linear(12, WIDTH)) for _ in range(TASKS)]
    model = make_model(TaskGates(1, TASKS, WIDTH, 16, 2))
    optimizer = Adam(model.parameters(), lr=0.01, betas=(0.9, 0.98))

    def data(task: Tensor) -> tuple[Tensor, Tensor]:
        x = noise()
        return x, torch.stack([teachers[each](x[:, row]).detach() for row, each in enumerate(task.tolist())], dim=1)

    @torch.no_grad()
    def loss() -> float:
        found = [F.mse_loss(model(x, one(task)), y) for task in range(TASKS) for x, y in [data(one(task))]]
        return torch.stack(found).mean().item()

    before = loss()
    for done in range(updates):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - done / updates)
        task = torch.randint(TASKS, (ROWS,)) if mixed else one(int(torch.randint(TASKS, ())))
        update(model, optimizer, *data(task), task)
    return before, loss()


@pytest.mark.parametrize(("mixed", "left"), [(True, 0.01), (False, 0.03)])
def test_experts_learn_although_updates_leave_them_out(mixed: bool, left: float) -> None:
    before, after = losses(mixed)
    assert after < left * before
