"""An update costs nothing for experts that no token used, and leaving them out teaches as well as updating all."""

from __future__ import annotations

import copy

import torch
from fairseq.optim.adam import Adam
from torch import Tensor
from torch.nn import functional as F

from taskmoe_plugin.moe import Expert, MoELayer, RoutedBatch, StaticTaskRouter, TaskRouter, TokenBatch

WIDTH, TASKS, ROWS, LENGTH = 8, 8, 16, 4


def make_layer(router: TaskRouter | StaticTaskRouter) -> MoELayer:
    return MoELayer(router, [Expert(WIDTH, 16, F.relu) for _ in range(router.num_experts)])


def batch_of(task: Tensor) -> RoutedBatch:
    tokens = TokenBatch.from_padding(torch.zeros(ROWS, LENGTH, dtype=torch.bool))
    return RoutedBatch(tokens, task, task_share=torch.full((TASKS,), 1 / TASKS))


def one(task: int) -> Tensor:
    return torch.full((ROWS,), task)


def noise() -> Tensor:
    return torch.randn(LENGTH, ROWS, WIDTH)


def update(layer: MoELayer, optimizer: Adam, x: Tensor, y: Tensor, task: Tensor, fill: bool = False) -> None:
    """One update as fairseq makes it; with ``fill``, of the experts without gradient as well, as if it were zero."""
    for parameter in layer.parameters():
        parameter.grad = None
    F.mse_loss(layer(x, batch_of(task))[0], y).backward()
    for parameter in layer.parameters() if fill else ():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    optimizer.step()


def test_unused_experts_are_not_updated_and_get_no_optimizer_state() -> None:
    torch.manual_seed(0)
    layer = make_layer(StaticTaskRouter(TASKS, experts=16, top_k=2))
    before, optimizer = copy.deepcopy(layer.state_dict()), Adam(layer.parameters(), lr=0.1, weight_decay=0.1)
    update(layer, optimizer, noise(), noise(), one(1))
    for name, expert in layer.experts.items():
        changed = [
            not torch.equal(value, before[f"experts.{name}.{key}"]) for key, value in expert.state_dict().items()
        ]
        stateful = [parameter in optimizer.state for parameter in expert.parameters()]
        assert changed == stateful == [int(name) in (1, 9)] * 4


def test_an_expert_takes_the_steps_that_its_own_updates_alone_would_give() -> None:
    torch.manual_seed(0)
    layer = make_layer(StaticTaskRouter(TASKS, experts=16, top_k=2))
    alone = copy.deepcopy(layer)
    mixed, single = (Adam(each.parameters(), lr=0.01) for each in (layer, alone))
    for task in (0, 1, 2, 0, 3, 0, 1, 0):
        x, y = noise(), noise()
        update(layer, mixed, x, y, one(task))
        if task == 0:
            update(alone, single, x, y, one(task))
    for name in ("0", "8"):
        for ours, theirs in zip(layer.experts[name].parameters(), alone.experts[name].parameters()):
            assert torch.equal(ours, theirs)
            assert mixed.state[ours]["step"] == 4


def test_where_every_batch_has_every_task_leaving_unused_experts_out_changes_nothing() -> None:
    torch.manual_seed(0)
    skipping = make_layer(StaticTaskRouter(TASKS, experts=32, top_k=2))
    filling = copy.deepcopy(skipping)
    ours, theirs = (Adam(layer.parameters(), lr=0.01) for layer in (skipping, filling))
    for _ in range(5):
        x, y, task = noise(), noise(), torch.arange(ROWS) % TASKS
        update(skipping, ours, x, y, task)
        update(filling, theirs, x, y, task, fill=True)
    for name, value in skipping.state_dict().items():
        assert torch.equal(value, filling.state_dict()[name])


def final_loss(seed: int, fill: bool) -> float:
    """Loss on new data of all tasks after learning one random network per task, the rows of a batch of random tasks."""
    torch.manual_seed(seed)
    teachers = [Expert(WIDTH, 12, F.relu) for _ in range(TASKS)]
    layer = make_layer(TaskRouter(TASKS, WIDTH, experts=16, top_k=2))
    optimizer = Adam(layer.parameters(), lr=0.01, betas=(0.9, 0.98))

    def data(task: Tensor) -> tuple[Tensor, Tensor]:
        x = noise()
        return x, torch.stack([teachers[each](x[:, row]).detach() for row, each in enumerate(task.tolist())], dim=1)

    updates = 600
    for done in range(updates):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - done / updates)
        task = torch.randint(TASKS, (ROWS,))
        update(layer, optimizer, *data(task), task, fill)
    with torch.no_grad():
        losses = [
            F.mse_loss(layer(x, batch_of(one(task)))[0], y) for task in range(TASKS) for x, y in [data(one(task))]
        ]
    return torch.stack(losses).mean().item()


def test_leaving_unused_experts_out_learns_as_well_as_updating_all() -> None:
    seeds = range(3)
    skipping, filling = (sum(final_loss(seed, fill) for seed in seeds) for fill in (False, True))
    assert skipping < 1.4 * filling
