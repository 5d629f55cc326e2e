"""How tasks use experts: from a table of tasks, and counted from what passes."""

from __future__ import annotations

import pytest
import torch

from taskmoe_plugin.moe import Usage, counted_usage, expert_load
from tests.helpers.moe import TASKS, WIDTH, gates_of, make_batch, make_layer

PADDING = torch.tensor([[False, False, False, True], [False, False, False, False], [True, False, False, True]])


def test_a_table_says_what_weight_each_task_gives_each_expert() -> None:
    gates = gates_of([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]], k=2)
    usage = Usage.of_table(gates, torch.tensor([3.0, 1.0]))
    assert torch.allclose(usage.weight, torch.tensor([[0.6, 0.3, 0.0], [0.0, 0.2, 0.7]]))
    assert torch.equal(usage.load, torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]))
    assert torch.equal(usage.share, torch.tensor([0.75, 0.25]))
    assert torch.equal(usage.expert_load, expert_load(gates, usage.share))


@pytest.mark.parametrize("kind", ["task", "static"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_what_is_counted_of_a_task_router_is_its_table(kind: str, top_k: int) -> None:
    layer, batch = make_layer(kind, top_k=top_k), make_batch(PADDING)
    with torch.no_grad(), counted_usage([layer.moe], batch.task, TASKS) as [sums]:
        layer(torch.randn(4, 3, WIDTH), batch)
        (table,) = layer.gates().layers()
    counted, expected = Usage.of_counts(sums, top_k), Usage.of_table(table, torch.ones(TASKS))
    present = batch.task.unique()
    assert torch.allclose(counted.weight[present], expected.weight[present])
    assert torch.allclose(counted.load[present], expected.load[present])


@pytest.mark.parametrize("kind", ["token", "sentence"])
def test_every_token_that_is_not_padding_counts_for_the_task_of_its_row(kind: str) -> None:
    layer, batch = make_layer(kind), make_batch(PADDING)
    task = torch.tensor([2, 0, 2])
    with torch.no_grad(), counted_usage([layer.moe], task, TASKS) as [sums]:
        _, record = layer(torch.randn(4, 3, WIDTH), batch)
    assert sums[..., 1].sum(dim=1).tolist() == [2 * 4, 0, 2 * (3 + 2)]
    assert torch.allclose(sums[..., 0].sum(dim=1), torch.tensor([4.0, 0.0, 5.0]))
    usage = Usage.of_counts(sums, 2)
    assert torch.allclose(usage.share, torch.tensor([4 / 9, 0, 5 / 9]))
    assert torch.allclose(usage.expert_load, expert_load(record.gates, record.share))


def test_sums_over_batches_and_stops_counting_at_the_end() -> None:
    layer, batch, x = make_layer("token"), make_batch(PADDING), torch.randn(4, 3, WIDTH)
    task = torch.zeros(3, dtype=torch.int64)
    with torch.no_grad():
        with counted_usage([layer.moe], task, 1) as [once]:
            layer(x, batch)
        with counted_usage([layer.moe], task, 1) as [twice]:
            layer(x, batch)
            layer(x, batch)
        layer(x, batch)
    assert torch.allclose(twice, 2 * once)
