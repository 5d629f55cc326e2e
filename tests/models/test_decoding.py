"""Step by step the decoder gives what it gives at once, and language ids follow their rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator

from taskmoe_plugin.moe import Experts, MoELayer
from tests.helpers.models import ROUTED, build_grouped, build_model, dictionary, name_of, net_input, rows


@pytest.mark.parametrize("flags", ROUTED, ids=name_of)
def test_incremental_decoding_equals_decoding_at_once(tmp_path, flags: dict[str, Any]) -> None:
    model = build_grouped(tmp_path, moe_freq=1, moe_expert_count=4, **flags).double()
    batch = net_input(rows(), left=False)
    prefixes = batch.pop("prev_output_tokens")
    prefixes[prefixes.eq(dictionary().pad())] = 7  # all targets equally long: decoding goes on for every row
    with torch.no_grad():
        encoder_out = model.encoder(**batch)
        at_once, _ = model.decoder(prefixes, encoder_out)
        state: dict = {}
        steps = [model.decoder(prefixes[:, : t + 1], encoder_out, state)[0] for t in range(prefixes.size(1))]
    torch.testing.assert_close(torch.cat(steps, dim=1), at_once, atol=1e-6, rtol=1e-5)


def test_reordering_the_encoder_output_takes_the_language_ids_along() -> None:
    model = build_model()
    batch = net_input(rows(3))
    del batch["prev_output_tokens"]
    order = torch.tensor([2, 2, 0, 1])
    reordered = model.encoder.reorder_encoder_out(model.encoder(**batch), order)
    ids = torch.stack([batch["src_lang_id"], batch["tgt_lang_id"]])
    assert torch.equal(reordered["lang_ids"][0], ids[:, order])
    again = model.encoder.reorder_encoder_out(reordered, torch.tensor([1, 3]))
    assert torch.equal(again["lang_ids"][0], ids[:, [2, 1]])


def test_a_model_that_routes_by_token_decodes_without_language_ids() -> None:
    model = build_model(encoder_moe_routing="token", decoder_moe_routing="sentence")
    batch = net_input(rows(3))
    del batch["src_lang_id"], batch["tgt_lang_id"], batch["prev_output_tokens"]
    reordered = model.encoder.reorder_encoder_out(model.encoder(**batch), torch.tensor([0, 2]))
    assert reordered["lang_ids"] == []


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_task_routing_without_language_ids_says_what_is_missing(stack: str) -> None:
    model = build_model(**{f"{'decoder' if stack == 'encoder' else 'encoder'}_moe_freq": 0})
    batch = net_input(rows(3))
    del batch["src_lang_id"]
    with pytest.raises(ValueError, match="--source-lang and --target-lang"):
        model(**batch)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_pair_that_was_not_trained_is_refused_rather_than_routed_somehow(stack: str) -> None:
    model = build_model(**{"moe_freq": 0, f"{stack}_moe_freq": 2, f"{stack}_moe_routing": "pair"})
    with pytest.raises(ValueError, match="a pair that the gates do not know"):
        model(**net_input(rows(2, pairs=["en-de", "fr-de"])))


def test_the_decoders_sentence_gate_sees_the_source_and_no_later_target_word() -> None:
    model = build_model(moe_freq=1, encoder_moe_routing="sentence", decoder_moe_routing="sentence").double()
    batch = net_input(rows(1) * 2, left=False)
    changed = {**batch, "prev_output_tokens": batch["prev_output_tokens"].clone()}
    changed["prev_output_tokens"][:, -1] = 5
    before, after = (model(**each)[0] for each in (batch, changed))
    torch.testing.assert_close(before[:, :-1], after[:, :-1])


def generate(model: Any, batch: dict[str, Any], beam: int = 3) -> list[list[dict[str, Any]]]:
    inputs = {name: value for name, value in batch.items() if name != "prev_output_tokens"}
    generator = SequenceGenerator([model], dictionary(), beam_size=beam, max_len_b=8, min_len=6)
    return generator.generate([model], {"net_input": inputs})


@pytest.mark.parametrize(("combine", "method"), [("outputs", "fold"), ("weights", "merge")])
def test_the_experts_of_the_only_task_are_made_one_network_once_for_a_batch_and_not_for_each_step(
    monkeypatch, combine: str, method: str
) -> None:
    model = build_model(moe_freq=1, moe_expert_count=4, moe_combine=combine)
    folded, dispatched = [], []
    fold, forward = getattr(Experts, method), MoELayer.forward
    monkeypatch.setattr(Experts, method, lambda *args: folded.append(1) or fold(*args))
    monkeypatch.setattr(MoELayer, "forward", lambda *args: dispatched.append(1) or forward(*args))
    generate(model, net_input(rows(5, pairs=["en-de"])))
    assert (len(folded), len(dispatched)) == (4, 0)
    generate(model, net_input(rows(5)))
    assert (len(folded), len(dispatched) > 0) == (4, True)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"moe_task_gate": "static"},
        {"moe_route_scale": 2.0},
        {"moe_route_scale": 3.0, "moe_task_gate": "static", "moe_top_k": 3},
        {"moe_combine": "weights"},
    ],
    ids=str,
)
def test_a_folded_batch_gives_what_dispatch_gives(flags: dict[str, Any]) -> None:
    model = build_model(moe_freq=1, moe_expert_count=4, **flags).double()
    batch = net_input(rows(3, pairs=["en-de"]), extra=1)
    with torch.no_grad():
        folded, dispatched = model(**batch)[0], model.train()(**batch)[0]
    mask = batch["prev_output_tokens"].ne(dictionary().pad())
    # Gates compute in fp32 under any precision.
    torch.testing.assert_close(folded[mask], dispatched[mask], atol=1e-6, rtol=1e-6)


def test_a_model_that_has_changed_between_two_batches_is_folded_anew() -> None:
    model = build_model(moe_freq=1, moe_expert_count=4)
    batch = net_input(rows(2, pairs=["en-de"]))
    before = generate(model, batch)[0][0]["score"]
    with torch.no_grad():
        for layer in model.decoder.moe_layers:
            layer.experts.fc2_weight.mul_(3)
    changed = generate(model, batch)[0][0]["score"]
    assert not torch.allclose(before, changed)
    again = build_model(moe_freq=1, moe_expert_count=4)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(generate(again, batch)[0][0]["score"], changed)
