"""Token routing among the experts that the token's language has chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.moe import Candidates, Choice, StaticTaskGates, TaskGates, TokenRouter, Tokens, balance_loss
from tests.helpers.models import LANGS, PAIRS, build_model, kept, net_input, rows

TASKS, WIDTH, EXPERTS, SET, TOP_K = 3, 6, 7, 4, 2
PADDING = torch.tensor([[False, False, False, True], [False] * 4, [True, False, False, True]])
TASK = torch.tensor([2, 0, 2])
BY_TOKEN = {"encoder_moe_routing": "token", "decoder_moe_routing": "token", "moe_expert_count": 6, "moe_freq": 1}
FLAGS = {**BY_TOKEN, "moe_language_experts": 3}


@pytest.fixture
def gates() -> TaskGates:
    torch.manual_seed(0)
    gates = TaskGates(1, TASKS, WIDTH, EXPERTS, SET)
    gates.weight.data *= 6
    return gates


def expected_weights(gates: TaskGates, router: TokenRouter, x: Tensor) -> Tensor:
    """(N, E), from the formula alone: the K best products of the two levels in the set, renormalised."""
    scores = gates.embedding[0] @ gates.weight[0].T / WIDTH + gates.head_start
    found = []
    for position, row in (~PADDING.T).nonzero().tolist():
        g = scores[TASK[row]].softmax(dim=0)
        q = (router.gate.weight @ x[position * len(TASK) + row]).softmax(dim=0)
        chosen = sorted(g.argsort(descending=True)[:SET].tolist())
        product = [g[expert] * q[expert] for expert in chosen]
        best = sorted(range(SET), key=lambda place: -product[place].item())[:TOP_K]
        total = sum(product[place] for place in best)
        weights = [Tensor(torch.zeros(()))] * EXPERTS
        for place in best:
            weights[chosen[place]] = product[place] / total
        found.append(torch.stack(weights))
    return torch.stack(found)


def routed(gates: TaskGates | StaticTaskGates, router: TokenRouter, x: Tensor) -> Tensor:
    """(N, E), the weights that tokens give the experts."""
    candidates = Candidates.of_gates(gates().layers()[0], TASK, EXPERTS)
    return router(x, replace(Tokens.from_padding(PADDING), candidates=candidates)).gates.shares


def test_a_token_has_the_product_of_both_levels_and_both_learn_from_it(gates: TaskGates) -> None:
    router, x = TokenRouter(WIDTH, EXPERTS, TOP_K), torch.randn(PADDING.numel(), WIDTH)
    router.gate.weight.data *= 6
    found, expected = routed(gates, router, x), expected_weights(gates, router, x)
    torch.testing.assert_close(found, expected)
    probe, parameters = torch.randn_like(found), [*gates.parameters(), *router.parameters()]
    gradients = [torch.autograd.grad((each * probe).sum(), parameters) for each in (found, expected)]
    torch.testing.assert_close(*gradients)
    embedding = gradients[0][0][0]
    # No token is of task 1.
    assert embedding[[0, 2]].abs().sum(dim=1).gt(1e-3).all()
    assert not embedding[1].any()


def test_the_balance_loss_is_of_the_experts_of_the_set_and_reaches_the_task(gates: TaskGates) -> None:
    router, x = TokenRouter(WIDTH, EXPERTS, TOP_K), torch.randn(PADDING.numel(), WIDTH)
    candidates = Candidates.of_gates(gates().layers()[0], TASK, EXPERTS)
    routing = router(x, replace(Tokens.from_padding(PADDING), candidates=candidates))
    chosen = gates().experts[0]
    for token, row in enumerate(routing.tokens.row):
        assert set(routing.gates.probs[token].nonzero().flatten().tolist()) == set(chosen[TASK[row]].tolist())
    balance_loss(routing.gates, routing.share).backward()
    assert gates.weight.grad.isfinite().all()
    assert gates.embedding.grad[0, [0, 2]].any(dim=1).all()


def test_static_gates_leave_tokens_their_own_probabilities() -> None:
    torch.manual_seed(0)
    gates = StaticTaskGates(1, TASKS, EXPERTS, SET)
    router, x = TokenRouter(WIDTH, EXPERTS, TOP_K), torch.randn(PADDING.numel(), WIDTH)
    found = routed(gates, router, x)
    for own, row, token in zip(found, *(each for each in (~PADDING.T).nonzero().T.flip(0))):
        chosen = gates.experts[0, TASK[row]]
        values, places = (router.gate.weight[chosen] @ x[token * len(TASK) + row]).softmax(dim=0).topk(TOP_K)
        expected = torch.zeros(EXPERTS).index_add(0, chosen[places], values / values.sum())
        torch.testing.assert_close(own, expected)


def test_a_task_changes_its_choice_in_training() -> None:
    # One expert of task 0's set, and no other, makes its tokens' outputs worse.
    torch.manual_seed(0)
    gates = TaskGates(1, 2, WIDTH, EXPERTS, SET, ahead=Candidates.HEAD_START)
    router = TokenRouter(WIDTH, EXPERTS, TOP_K)
    bad = int(gates().experts[0, 0, 0])
    optimizer = torch.optim.Adam([*gates.parameters()], lr=0.01)
    cost = torch.zeros(EXPERTS)
    cost[bad] = 1.0
    for _ in range(200):
        candidates = Candidates.of_gates(gates().layers()[0], torch.zeros(3, dtype=torch.int64), EXPERTS)
        routing = router(torch.randn(12, WIDTH), replace(Tokens.from_padding(PADDING), candidates=candidates))
        optimizer.zero_grad()
        (routing.gates.shares @ cost).mean().backward()
        optimizer.step()
    assert bad not in gates().experts[0, 0]


def test_rows_choose_among_the_experts_of_their_source_in_the_encoder_and_of_their_target_in_the_decoder() -> None:
    model = build_model(**FLAGS)
    batch = rows(10)
    with torch.no_grad():
        _, extra = model(**net_input(batch))
    for name, side in (("encoder", 0), ("decoder", 1)):
        stack = getattr(model, name)
        assert stack.tasks.table.names == LANGS
        with torch.no_grad():
            found = stack.tasks.gates()
        for layer, routing in enumerate(extra["moe"][name]):
            for row, experts in zip(routing.tokens.row, routing.experts):
                lang = LANGS.index(batch[row].pair.split("-")[side])
                assert set(experts.tolist()) <= set(found.experts[layer, lang].tolist())
    assert len(PAIRS) == len({row.pair for row in batch})


def test_unknown_languages_are_refused() -> None:
    model = build_model(**FLAGS)
    model.check_pair("fr", "de")
    model.encoder.tasks.lookup[:] = -1
    with pytest.raises(UsageError, match="the encoder's token routing knows only the pairs"):
        model.check_pair("fr", "de")
    inputs = net_input(rows(1))
    with pytest.raises(ValueError, match="--source-lang"):
        model(**{**inputs, "src_lang_id": None})
    # Of rows without a task, as of a batch of nothing, any expert is a candidate.
    assert len(kept(model(**inputs)[0], inputs)) == 1
    for each in model.encoder.tasks(inputs["src_lang_id"], inputs["tgt_lang_id"]):
        assert each.allowed[each.task].all()
        assert not each.preference[each.task].any()


def test_flags_are_about_the_choice_of_tokens_and_not_about_that_of_languages() -> None:
    model = build_model(**FLAGS, moe_threshold=0.5, moe_route_scale=2.0)
    gates, router = model.encoder.tasks.gates, model.encoder.layers[0].moe.router
    assert gates.choice == Choice()
    assert router.choice == Choice(2.0, 0.5)
    assert gates.head_start.max() == Candidates.HEAD_START


@pytest.mark.parametrize("amp", [False, True], ids=["fp16", "amp"])
def test_sets_and_preferences_are_computed_in_full_precision(amp: bool) -> None:
    model = build_model(**FLAGS).train()
    batch = net_input(rows())
    whole = model.encoder.tasks(batch["src_lang_id"], batch["tgt_lang_id"])[0]
    if not amp:
        model.half()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        rounded = model.encoder.tasks(batch["src_lang_id"], batch["tgt_lang_id"])[0]
        logits, extra = model(**batch)
    assert torch.equal(rounded.allowed, whole.allowed)
    torch.testing.assert_close(rounded.preference, whole.preference, atol=0 if amp else 1e-2, rtol=0)
    assert all(record.gates.probs.dtype == torch.float32 for each in extra["moe"].values() for record in each)
    torch.cat(kept(logits, batch)).float().square().sum().backward()
    assert all(each.grad.isfinite().all() for each in model.encoder.tasks.parameters())


def test_preferences_are_added_in_full_precision() -> None:
    torch.manual_seed(0)
    candidates = Candidates(torch.ones(2, EXPERTS, dtype=torch.bool), torch.randn(2, EXPERTS), torch.tensor([1, 0]))
    logits, row = torch.randn(4, EXPERTS), torch.tensor([0, 1, 1, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = candidates.restrict(logits, row)
    torch.testing.assert_close(found, logits + candidates.preference[candidates.task[row]], rtol=1e-6, atol=1e-6)
