"""What the routers choose, with which weights and in which precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskmoe_plugin.moe import StaticTaskRouter, TaskRouter, TokenRouter, top_k_gates
from taskmoe_plugin.moe.routers import deal
from tests.helpers.moe import ROUTERS, TASKS, WIDTH, make_batch, make_router

LEARNED = ("task", "sentence", "token")
PADDING = torch.tensor([[False, False, False], [False, True, True]])


def inputs(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Flattened activations (T·B, C) for PADDING."""
    return torch.randn(PADDING.numel(), WIDTH, generator=torch.Generator().manual_seed(3)).to(dtype)


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


@pytest.mark.parametrize("kind", ROUTERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gates_are_fp32_when_weights_and_inputs_are_half(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    router = make_router(kind, experts=4, top_k=2).to(dtype)
    gates = router.gates(inputs(dtype), make_batch(PADDING))
    assert gates.probs.dtype == gates.weights.dtype == torch.float32
    # In fp32 from the first product on: the same as an fp32 router with the rounded weights and inputs.
    exact = router.float().gates(inputs(dtype).float(), make_batch(PADDING))
    torch.testing.assert_close(gates.probs, exact.probs)
    torch.testing.assert_close(gates.weights, exact.weights)
    if kind in LEARNED:
        assert gates.logits.dtype == torch.float32


@pytest.mark.parametrize("kind", LEARNED)
def test_gates_are_fp32_under_autocast(kind: str) -> None:
    router = make_router(kind, experts=4, top_k=2)
    exact = router.gates(inputs(), make_batch(PADDING))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gates = router.gates(inputs(), make_batch(PADDING))
    assert gates.logits.dtype == torch.float32
    assert torch.equal(gates.logits, exact.logits)


@pytest.mark.parametrize("kind", LEARNED)
def test_jitter_disturbs_the_gate_in_training_only(kind: str) -> None:
    router, batch = make_router(kind, experts=4, top_k=2, jitter=0.5), make_batch(PADDING)
    calm = make_router(kind, experts=4, top_k=2)
    calm.load_state_dict(router.state_dict())
    expected = calm.gates(inputs(), batch).logits
    assert not torch.equal(router.train().gates(inputs(), batch).logits, expected)
    assert torch.equal(router.eval().gates(inputs(), batch).logits, expected)


def test_an_update_of_adam_moves_the_logits_of_a_task_little_however_wide_its_embedding() -> None:
    moves = []
    for width in (64, 1024):
        torch.manual_seed(0)
        router = TaskRouter(tasks=4, width=width, experts=8, top_k=2)
        optimizer = torch.optim.Adam(router.parameters(), lr=0.001)
        before = router.table().logits.detach()
        router.table().probs[:, 0].log().sum().neg().backward()
        optimizer.step()
        moves.append(float((router.table().logits.detach() - before).abs().max()))
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
    gates = TaskRouter(tasks=3, width=64, experts=4, top_k=2).table()
    assert gates.experts.sort(dim=1).values.tolist() == [[0, 2], [1, 3], [0, 3]]
    assert gates.weights.max() < 0.6


def test_a_task_can_leave_the_experts_dealt_to_it() -> None:
    torch.manual_seed(0)
    router = TaskRouter(tasks=3, width=64, experts=4, top_k=2)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        router.table().logits[0, 1::2].sum().neg().backward()
        optimizer.step()
    assert sorted(router.table().experts[0].tolist()) == [1, 3]


def test_jitter_multiplies_by_at_most_one_plus_or_minus_epsilon() -> None:
    router = TaskRouter(tasks=50, width=1, experts=1, top_k=1, jitter=0.25)
    with torch.no_grad():
        router.head_start.zero_()
        router.task_embedding.fill_(1.0)
        router.gate.weight.fill_(1.0)
        noise = router.table().logits
    assert 0.75 <= noise.min() < 0.85
    assert 1.15 < noise.max() <= 1.25


def test_a_token_router_scores_the_tokens_that_are_not_padding() -> None:
    router = make_router("token", experts=4, top_k=2)
    gates = router.gates(inputs(), make_batch(PADDING))
    kept = inputs().view(3, 2, WIDTH).transpose(0, 1)[~PADDING]
    # Row by row, the mask has 3 + 1 tokens; flattened, the second row's token comes second.
    torch.testing.assert_close(gates.logits, router.gate(kept[[0, 3, 1, 2]]))


def test_a_sentence_router_scores_the_mean_of_a_rows_tokens() -> None:
    router, batch = make_router("sentence", experts=4, top_k=2), make_batch(PADDING)
    rows = inputs().view(3, 2, WIDTH).transpose(0, 1)
    means = torch.stack([rows[0].mean(0), rows[1, 0]])
    torch.testing.assert_close(router.gates(inputs(), batch).logits, router.gate(means))
    given_mean = torch.randn(2, WIDTH)
    gates = router.gates(inputs(), replace(batch, sentence=given_mean))
    torch.testing.assert_close(gates.logits, router.gate(given_mean))
    assert router.unit(batch).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("kind", ["task", "static"])
def test_a_table_does_not_depend_on_the_batch(kind: str) -> None:
    router = make_router(kind, experts=4, top_k=2)
    one, other = router.gates(inputs(), make_batch(PADDING)), router.gates(-inputs()[:2], make_batch(PADDING[:1]))
    assert len(one.probs) == TASKS
    assert torch.equal(one.probs, other.probs)
    assert torch.equal(one.experts, other.experts)


def test_a_task_router_needs_the_tasks_of_the_rows() -> None:
    with pytest.raises(ValueError, match="task of each row"):
        make_router("task", experts=4, top_k=2).unit(replace(make_batch(PADDING), task=None))


def test_static_tasks_are_dealt_to_the_experts_in_turn_with_equal_weights() -> None:
    router = StaticTaskRouter(tasks=3, experts=4, top_k=2)
    gates = router.table()
    assert gates.logits is None
    assert gates.experts.tolist() == [[0, 2], [1, 3], [0, 3]]
    assert gates.weights.tolist() == [[0.5, 0.5]] * 3
    assert gates.probs.tolist() == [[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5], [0.5, 0, 0, 0.5]]
    assert not list(router.parameters())


def test_a_checkpoint_has_the_experts_of_static_tasks() -> None:
    saved = StaticTaskRouter(tasks=3, experts=4, top_k=2).state_dict()
    saved["experts"] = saved["experts"].flip(0)
    loaded = StaticTaskRouter(tasks=3, experts=4, top_k=2)
    loaded.load_state_dict(saved)
    assert loaded.table().experts.tolist() == [[0, 3], [1, 3], [0, 2]]


def test_the_first_gates_of_tokens_are_nearly_even() -> None:
    torch.manual_seed(0)
    tokens = TokenRouter(width=128, experts=8, top_k=2).gate(torch.randn(64, 128))
    assert tokens.std().item() == pytest.approx(0.1**0.5, abs=0.07)


def test_the_share_of_a_unit_is_the_share_of_its_tokens() -> None:
    batch = make_batch(PADDING)
    sentence, token, task = (make_router(kind, experts=4, top_k=2) for kind in ("sentence", "token", "task"))
    assert sentence.share(batch, 2).tolist() == [0.75, 0.25]
    assert token.share(batch, 4).tolist() == [0.25] * 4
    by_training = replace(batch, task_share=torch.tensor([0.5, 0.25, 0.25]))
    assert task.share(by_training, TASKS).tolist() == [0.5, 0.25, 0.25]
    by_batch = replace(batch, task=torch.tensor([2, 0]), task_share=None)
    assert task.share(by_batch, TASKS).tolist() == [0.25, 0.0, 0.75]
