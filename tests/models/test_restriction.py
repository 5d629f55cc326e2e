"""Stacks that route by token among some experts of each language."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.models.subnet_shape import Restriction, SubnetShape
from taskmoe_plugin.moe import Candidates, TokenRouter, Tokens
from tests.helpers.models import LANGS, build_model, kept, net_input, rows

PRUNED = ("en-de", "fr-en")
# Of the layers' four experts 0, 1 and 3 are left; the tasks name them by their places.
RESTRICTIONS = {
    "encoder": Restriction("source", PRUNED, {0: ((0, 1), (1, 2)), 1: ((0, 1, 2), (0, 2))}),
    "decoder": Restriction("pair", PRUNED, {0: ((0, 2), (0, 1)), 1: ((1, 2), (0, 1))}),
}
LEFT = (0, 1, 3)
FLAGS = {"encoder_moe_routing": "token", "decoder_moe_routing": "token", "moe_freq": 1, "moe_expert_count": 4}


def shapes(restrictions: dict[str, Restriction], left: dict[str, dict[int, tuple[int, ...]]]) -> str:
    class Args:
        taskmoe_subnet: str

    SubnetShape.write(Args, {name: SubnetShape((), left[name], each) for name, each in restrictions.items()})
    return Args.taskmoe_subnet


@pytest.fixture(scope="module")
def pruned():
    left = {name: {0: LEFT, 1: LEFT} for name in RESTRICTIONS}
    return build_model(**FLAGS, taskmoe_subnet=shapes(RESTRICTIONS, left)).double()


def test_a_token_chooses_among_the_experts_of_its_task_as_if_there_were_no_others() -> None:
    torch.manual_seed(0)
    allowed = ((0, 2, 3), (1, 3))
    gates = Restriction("pair", PRUNED, {5: allowed}).gates([5], 4)
    assert not gates.state_dict()
    router = TokenRouter(6, 4, 2)
    x, task = torch.randn(5 * 3, 6), torch.tensor([1, 0, 2])
    candidates = Candidates.of_gates(gates().layers()[0], task, 4)
    tokens = replace(Tokens.from_padding(torch.zeros(3, 5, dtype=torch.bool)), candidates=candidates)
    routing = router(x, tokens)
    for token in range(5 * 3):
        # Rows of no task choose among all.
        own = torch.tensor((*allowed, range(4))[task[tokens.row[token]]])
        weights, places = (router.gate.weight[own] @ x[token]).softmax(dim=0).topk(2)
        assert routing.experts[token].tolist() == own[places].tolist()
        assert torch.allclose(routing.weights[token], weights / weights.sum())
    routing.weights.sum().backward()
    assert router.gate.weight.grad.isfinite().all()


def test_each_row_of_a_mixed_batch_has_what_a_model_with_its_experts_alone_gives(pruned) -> None:
    batch = rows(6, pairs=PRUNED)
    inputs = net_input(batch)
    with torch.no_grad():
        together = kept(pruned(**inputs)[0], inputs)
    for pair in PRUNED:
        own = {name: each.without([pair], LANGS) for name, each in RESTRICTIONS.items()}
        places = {
            name: {layer: each.experts_of(layer, [pair], LANGS) for layer in (0, 1)}
            for name, each in RESTRICTIONS.items()
        }
        left = {name: {n: tuple(LEFT[p] for p in each) for n, each in by.items()} for name, by in places.items()}
        single = build_model(**FLAGS, taskmoe_subnet=shapes(own, left)).double()
        weights = pruned.state_dict()
        for name, layers in places.items():
            for layer, each in layers.items():
                for key in [key for key in weights if key.startswith(f"{name}.layers.{layer}.moe.")]:
                    weights[key] = weights[key][list(each)]
        single.load_state_dict(weights)
        mine = [row for row in batch if row.pair == pair]
        inputs = net_input(mine)
        with torch.no_grad():
            alone = kept(single(**inputs)[0], inputs)
        expected = [logits for logits, row in zip(together, batch) if row.pair == pair]
        # Gates compute in fp32, whatever the model's type.
        torch.testing.assert_close(alone, expected, atol=1e-6, rtol=1e-6)
    assert not torch.equal(together[0], together[2])


def test_what_one_pair_is_left_with_has_new_places() -> None:
    alone = RESTRICTIONS["encoder"].without(["fr-en"], LANGS)
    assert alone == Restriction("source", ("fr-en",), {0: ((0, 1),), 1: ((0, 1),)})
    assert Restriction.from_json(json.loads(json.dumps(alone.__dict__))) == alone


def test_pairs_that_it_was_not_pruned_to_are_refused(pruned) -> None:
    pruned.check_pair("en", "de")
    with pytest.raises(UsageError, match="the decoder was pruned to the experts of other pairs"):
        pruned.check_pair("en", "fr")


def test_rows_without_language_ids_are_refused(pruned) -> None:
    inputs = net_input(rows(1, pairs=PRUNED))
    with pytest.raises(ValueError, match="--source-lang"):
        pruned(**{**inputs, "src_lang_id": None})
