"""What gates choose, with which weights and in which precision."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from taskmoe_plugin.moe import (
    FixedTaskGates,
    Gates,
    Routing,
    SentenceRouter,
    StaticTaskGates,
    TaskGates,
    TokenRouter,
    Warmup,
    deal,
    routings_of_units,
    top_k_gates,
)
from taskmoe_plugin.moe import routing as routing_module
from tests.helpers.moe import ROUTINGS, TASKS, WIDTH, RoutedMoE, make_batch, make_layer

LEARNED = ("task", "sentence", "token")
PADDING = torch.tensor([[False, False, False], [False, True, True]])


BATCH = make_batch(PADDING)


def inputs(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Activations (T, B, C) for PADDING."""
    return torch.randn(3, 2, WIDTH, generator=torch.Generator().manual_seed(3)).to(dtype)


def gates_of(layer: RoutedMoE, x: torch.Tensor) -> Gates:
    return layer.route(x, BATCH).gates


@given(st.integers(1, 5), st.integers(0, 5), st.integers(0, 2**16), st.data())
def test_top_k_takes_the_most_probable_experts_best_first(
    experts: int, units: int, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, experts))
    logits = torch.randn(units, experts, generator=torch.Generator().manual_seed(seed))
    gates = top_k_gates(logits, k)
    for unit in range(units):
        order = sorted(range(experts), key=lambda expert: -logits[unit, expert].item())
        assert gates.experts[unit].tolist() == order[:k]
    torch.testing.assert_close(gates.probs, logits.softmax(1))
    if k > 1:
        torch.testing.assert_close(gates.weights.sum(1), torch.ones(units))
        chosen = gates.probs.gather(1, gates.experts)
        torch.testing.assert_close(gates.weights, chosen / chosen.sum(1, keepdim=True))


def test_top_1_keeps_its_probability_as_weight_so_that_the_loss_reaches_the_gate() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True)
    gates = top_k_gates(logits, 1)
    assert gates.weights.item() == pytest.approx(logits.softmax(1)[0, 0].item())
    gates.weights.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] > 0


@pytest.mark.parametrize("k", [0, 3])
def test_a_k_outside_1_to_e_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k}, experts = 2"):
        TokenRouter(WIDTH, experts=2, top_k=k)


@pytest.mark.parametrize("kind", ROUTINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gates_are_fp32_when_weights_and_inputs_are_half(kind: str, dtype: torch.dtype) -> None:
    layer = make_layer(kind).to(dtype)
    gates = gates_of(layer, inputs(dtype))
    assert gates.probs.dtype == gates.weights.dtype == torch.float32
    # In fp32 from the first product on: the same as an fp32 router with the rounded weights and inputs.
    exact = gates_of(layer.float(), inputs(dtype).float())
    torch.testing.assert_close(gates.probs, exact.probs)
    torch.testing.assert_close(gates.weights, exact.weights)
    if kind in LEARNED:
        assert gates.logits is not None
        assert gates.logits.dtype == torch.float32


@pytest.mark.parametrize("kind", ROUTINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_routing_is_fp32_under_autocast(kind: str, dtype: torch.dtype) -> None:
    layer = make_layer(kind)
    exact = layer.route(inputs(), BATCH)
    with torch.autocast("cpu", dtype=dtype):
        routing = layer.route(inputs(), BATCH)
    assert torch.equal(routing.weights, exact.weights)
    assert torch.equal(routing.gates.probs, exact.gates.probs)


@pytest.mark.parametrize("kind", LEARNED)
def test_jitter_disturbs_the_gate_in_training_only(kind: str) -> None:
    layer, calm = make_layer(kind, jitter=0.5), make_layer(kind)
    calm.load_state_dict(layer.state_dict())
    expected = gates_of(calm, inputs()).logits
    assert not torch.equal(gates_of(layer.train(), inputs()).logits, expected)
    assert torch.equal(gates_of(layer.eval(), inputs()).logits, expected)


def noisy(num_updates: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(0)
    gates = TaskGates(2, TASKS, WIDTH, 4, 2, jitter=0.5, seed=seed)
    torch.manual_seed(num_updates + 1000)  # what else has drawn numbers must not matter
    gates.set_num_updates(num_updates)
    return gates.train()().logits


def test_the_noise_of_tasks_depends_on_the_update_and_the_stack_alone() -> None:
    assert torch.equal(noisy(3), noisy(3))
    assert not torch.equal(noisy(3), noisy(4))
    assert not torch.equal(noisy(3), noisy(3, seed=1))


@given(st.integers(2, 8), st.integers(0, 40), st.integers(1, 1000))
def test_in_a_warm_up_the_number_of_experts_falls_from_the_first_to_k(k: int, more: int, updates: int) -> None:
    warmup = Warmup(updates, k + more)
    numbers = [warmup.top_k(k, update) for update in range(updates + 2)]
    assert numbers[0] == k + more
    assert numbers[-2:] == [k, k]
    assert numbers == sorted(numbers, reverse=True)


def test_in_a_warm_up_it_falls_by_the_same_factor_in_equal_times() -> None:
    assert [Warmup(100, 16).top_k(2, update) for update in (0, 33, 34, 66, 67, 99, 100, 200)] == [
        16, 9, 8, 5, 4, 3, 2, 2,
    ]  # fmt: skip


def test_tasks_that_warm_up_begin_with_more_experts_which_all_learn_and_translate_with_the_best_k() -> None:
    gates = TaskGates(layers=1, tasks=3, width=8, experts=8, top_k=2, warmup=Warmup(100, 6))
    assert not gates.head_start.any()
    found = gates.train()()
    assert found.experts.size(-1) == 6
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(1, 3))
    (found.shares * torch.randn(1, 3, 8)).sum().backward()
    chosen = torch.zeros(8).index_fill(0, found.experts[0].flatten(), 1).bool()
    assert torch.equal(gates.weight.grad.abs().sum(dim=-1).gt(0)[0], chosen)
    calm = gates.eval()()
    assert torch.equal(calm.experts, found.experts[..., :2])
    gates.train().set_num_updates(100)
    assert torch.equal(gates().experts, calm.experts)


def sharing(warmup: Warmup | None, updates: int = 400) -> tuple[float, float]:
    """How much tasks share of their experts when six of them have learnt two functions: of the same one, of the other.

    There are four experts, and each task has two, so that tasks of one function can have theirs to themselves.
    """
    torch.manual_seed(0)
    tasks, experts, width = 6, 4, 8
    functions = [nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, width)) for _ in range(2)]
    for parameter in nn.ModuleList(functions).requires_grad_(False).parameters():
        parameter.mul_(2)
    first, second = (nn.Parameter(torch.randn(experts, width, width) / width**0.5) for _ in range(2))
    gates = TaskGates(1, tasks, 16, experts, 2, warmup=warmup)
    optimizer = torch.optim.Adam([first, second, *gates.parameters()], lr=0.01)
    for update in range(updates):
        gates.set_num_updates(update)
        x = torch.randn(tasks, 32, width)
        target = torch.stack([functions[task % 2](x[task]) for task in range(tasks)])
        each = torch.einsum("tnec,ecd->tned", torch.einsum("tnc,ecd->tned", x, first).relu(), second)
        loss = F.mse_loss(2 * torch.einsum("te,tned->tnd", gates().shares[0], each), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shares = gates.eval()().shares[0]
    common = torch.minimum(shares.unsqueeze(1), shares).sum(dim=-1)
    same = (torch.arange(tasks).unsqueeze(1) - torch.arange(tasks)) % 2 == 0
    return float(common[same & ~torch.eye(tasks, dtype=torch.bool)].mean()), float(common[~same].mean())


def test_tasks_that_warm_up_learn_which_tasks_to_share_experts_with() -> None:
    same, other = sharing(Warmup(200, 4))
    assert same > 0.95
    assert other < 0.5
    assert sharing(None)[0] < 0.8  # those that are dealt keep some that are not of their kind


def test_an_update_of_adam_moves_the_logits_of_a_task_little_however_wide_its_embedding() -> None:
    moves = []
    for width in (64, 1024):
        torch.manual_seed(0)
        gates = TaskGates(layers=1, tasks=4, width=width, experts=8, top_k=2)
        optimizer = torch.optim.Adam(gates.parameters(), lr=0.001)
        before = gates().logits.detach()
        gates().probs[..., 0].log().sum().neg().backward()
        optimizer.step()
        moves.append(float((gates().logits.detach() - before).abs().max()))
    # Of the embedding and of the gate, the learning rate each times the mean of what the other has.
    assert max(moves) < 0.003
    assert min(moves) > 0.0005


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (4, 2), (16, 2), (9, 3), (3, 3)])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_experts_are_dealt_evenly_and_none_twice_to_a_task(experts: int, top_k: int, rounds: int) -> None:
    dealt = deal(rounds * experts // top_k, experts, top_k)
    assert dealt.flatten().bincount().tolist() == [rounds] * experts
    assert all(len(set(row)) == top_k for row in dealt.tolist())


@pytest.mark.parametrize(("experts", "top_k"), [(5, 2), (7, 3), (128, 6)])
def test_experts_that_cannot_be_dealt_evenly_are_all_dealt(experts: int, top_k: int) -> None:
    dealt = deal(experts, experts, top_k)
    assert set(dealt.flatten().tolist()) == set(range(experts))
    assert all(len(set(row)) == top_k for row in dealt.tolist())


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (16, 2), (16, 4), (15, 3)])
def test_no_two_tasks_share_all_their_experts_until_two_blocks_have_met_in_every_way(experts: int, top_k: int) -> None:
    tasks = (experts // top_k) ** 2
    assert len({tuple(row) for row in deal(tasks, experts, top_k).tolist()}) == tasks


def test_a_task_begins_with_the_experts_dealt_to_it_with_nearly_equal_weights() -> None:
    torch.manual_seed(0)
    gates = TaskGates(layers=2, tasks=3, width=64, experts=4, top_k=2)()
    assert gates.experts.sort(dim=2).values.tolist() == [[[0, 2], [1, 3], [0, 3]]] * 2
    assert gates.weights.max() < 0.6


def test_a_task_can_leave_the_experts_dealt_to_it() -> None:
    torch.manual_seed(0)
    gates = TaskGates(layers=2, tasks=3, width=64, experts=4, top_k=2)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        gates().logits[1, 0, 1::2].sum().neg().backward()
        optimizer.step()
    assert sorted(gates().experts[1, 0].tolist()) == [1, 3]
    assert sorted(gates().experts[0, 0].tolist()) == [0, 2]


@pytest.mark.parametrize("experts", [2, 8, 32, 128])
def test_with_one_expert_a_task_it_begins_at_full_weight_however_many_experts(experts: int) -> None:
    torch.manual_seed(0)
    weights = TaskGates(layers=1, tasks=4, width=512, experts=experts, top_k=1)().weights
    assert weights.tolist() == [[[pytest.approx(1.0, abs=0.15)]] * 4]


def test_with_one_expert_a_task_the_loss_reaches_the_gate() -> None:
    gates = TaskGates(layers=1, tasks=1, width=16, experts=4, top_k=1)
    logits = gates().logits
    assert logits is not None
    found = gates()
    expected = float(found.probs[0, 0].max() * (1 + 3 * math.exp(-2.0)))
    assert found.weights.item() == pytest.approx(expected)
    found.weights.sum().backward()
    assert gates.weight.grad.abs().sum() > 0


def test_jitter_multiplies_by_at_most_one_plus_or_minus_epsilon() -> None:
    gates = TaskGates(layers=1, tasks=50, width=1, experts=1, top_k=1, jitter=0.25)
    with torch.no_grad():
        gates.head_start.zero_()
        gates.embedding.fill_(1.0)
        gates.weight.fill_(1.0)
        noise = gates().logits
    assert 0.75 <= noise.min() < 0.85
    assert 1.15 < noise.max() <= 1.25


def test_a_token_router_scores_the_tokens_that_are_not_padding() -> None:
    layer = make_layer("token")
    gates = gates_of(layer, inputs())
    kept = inputs().transpose(0, 1)[~PADDING]
    # Row by row, the mask has 3 + 1 tokens; flattened, the second row's token comes second.
    torch.testing.assert_close(gates.logits, layer.moe.router.gate(kept[[0, 3, 1, 2]]))


def test_a_sentence_router_scores_the_mean_of_a_rows_tokens() -> None:
    router = make_layer("sentence").moe.router
    assert isinstance(router, SentenceRouter)
    flat, rows = inputs().view(-1, WIDTH), inputs().transpose(0, 1)
    means = torch.stack([rows[0].mean(0), rows[1, 0]])
    routing = router(flat, BATCH.tokens)
    torch.testing.assert_close(routing.gates.logits, router.gate(means))
    given_mean = torch.randn(2, WIDTH)
    routing = router(flat, replace(BATCH.tokens, sentence=given_mean))
    torch.testing.assert_close(routing.gates.logits, router.gate(given_mean))
    assert torch.equal(routing.experts, routing.gates.experts[[0, 1, 0, 0]])
    assert torch.equal(routing.weights, routing.gates.weights[[0, 1, 0, 0]])


def test_static_tasks_are_dealt_to_the_experts_in_turn_with_equal_weights() -> None:
    module = StaticTaskGates(layers=2, tasks=3, experts=4, top_k=2)
    for gates in module().layers():
        assert gates.logits is None
        assert gates.experts.tolist() == [[0, 2], [1, 3], [0, 3]]
        assert gates.weights.tolist() == [[0.5, 0.5]] * 3
        assert gates.probs.tolist() == [[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5], [0.5, 0, 0, 0.5]]
    assert not list(module.parameters())


def test_a_checkpoint_has_the_experts_of_static_tasks() -> None:
    saved = StaticTaskGates(layers=1, tasks=3, experts=4, top_k=2).state_dict()
    saved["experts"] = saved["experts"].flip(1)
    loaded = FixedTaskGates(layers=1, tasks=3, experts=4, top_k=2)
    loaded.load_state_dict(saved)
    assert loaded().experts.tolist() == [[[0, 3], [1, 3], [0, 2]]]


def test_the_first_gates_of_tokens_are_nearly_even() -> None:
    torch.manual_seed(0)
    tokens = TokenRouter(width=128, experts=8, top_k=2).gate(torch.randn(64, 128))
    assert tokens.std().item() == pytest.approx(0.1**0.5, abs=0.07)


def test_the_share_of_a_unit_is_the_share_of_its_tokens() -> None:
    sentence, token = (make_layer(kind).route(inputs(), BATCH) for kind in ("sentence", "token"))
    assert sentence.share.tolist() == [0.75, 0.25]
    assert token.share.tolist() == [0.25] * 4
    assert not sentence.by_task
    assert make_layer("task").route(inputs(), BATCH).by_task


def routed(gates: Gates, unit: list[int]) -> list[Routing]:
    tokens = BATCH.tokens
    return routings_of_units(gates, torch.tensor(unit), tokens, torch.full((TASKS,), 1 / TASKS))


@pytest.mark.parametrize("many", [routing_module.MANY_UNITS, 0])
def test_each_layer_gives_the_tokens_of_a_unit_its_experts_and_weights(
    monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    monkeypatch.setattr(routing_module, "MANY_UNITS", many)
    torch.manual_seed(0)
    gates = TaskGates(layers=3, tasks=TASKS, width=WIDTH, experts=4, top_k=2)()
    unit = [0, 2, 2, 1]
    for layer, routing in enumerate(routed(gates, unit)):
        assert torch.equal(routing.experts, gates.experts[layer][unit])
        assert torch.equal(routing.weights, gates.weights[layer][unit])


@pytest.mark.parametrize("many", [routing_module.MANY_UNITS, 0])
def test_the_gradient_of_a_units_weights_is_the_sum_over_its_tokens(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    monkeypatch.setattr(routing_module, "MANY_UNITS", many)
    gates = StaticTaskGates(layers=1, tasks=TASKS, experts=4, top_k=2)()
    weights = gates.weights.clone().requires_grad_()
    (routing,) = routed(replace(gates, weights=weights), [0, 2, 2, 1])
    (routing.weights * torch.tensor([1.0, 2.0, 3.0, 4.0]).unsqueeze(1)).sum().backward()
    assert weights.grad is not None
    assert weights.grad[0].tolist() == [[1.0, 1.0], [4.0, 4.0], [5.0, 5.0]]


def test_weights_of_static_gates_are_scaled() -> None:
    [gates] = StaticTaskGates(1, TASKS, 4, 2, scale=3.0)().layers()
    torch.testing.assert_close(gates.weights.sum(dim=1), torch.full((TASKS,), 3.0))
