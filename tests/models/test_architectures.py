"""Architectures have the sizes that are published, and flags reach the layers."""

from __future__ import annotations

import copy

import pytest
import torch
from fairseq.dataclass.configs import EMAConfig
from fairseq.models.ema.ema import EMA

from taskmoe_plugin.moe import SentenceRouter, StaticTaskGates, TaskGates, TokenRouter
from tests.helpers.models import LANGS, PAIRS, StubTask, build_grouped, build_model, net_input, rows


def millions(module: torch.nn.Module, without: str) -> float:
    """Parameters in millions, embeddings left out."""
    return sum(p.numel() for name, p in module.named_parameters() if without not in name) / 1e6


@pytest.mark.parametrize(
    ("arch", "encoder", "decoder"),
    [
        ("taskmoe_transformer_base", 214, 221),  # TaskMoE, table 7
        ("taskmoe_transformer_big", 6500, 6500),  # TaskMoE, table 8
    ],
)
def test_the_papers_models_have_the_papers_size(arch: str, encoder: float, decoder: float) -> None:
    with torch.device("meta"):
        model = build_model(arch, task=StubTask(words=64_000 - 4), share_all_embeddings=True)
    assert millions(model.encoder, without="embed_tokens") == pytest.approx(encoder, rel=0.01)
    assert millions(model.decoder, without="embed_tokens") == pytest.approx(decoder, rel=0.01)


def test_the_base_models_vocabulary_has_the_papers_size() -> None:
    with torch.device("meta"):
        model = build_model("taskmoe_transformer_base", task=StubTask(words=64_000 - 4))
    assert model.encoder.embed_tokens.weight.numel() / 1e6 == pytest.approx(33, abs=0.5)


def test_tiny_is_4_and_4_layers_of_width_128() -> None:
    model = build_model("taskmoe_transformer_tiny")
    for stack in (model.encoder, model.decoder):
        assert [hasattr(layer, "moe") for layer in stack.layers] == [False, True, False, True]
        assert stack.layers[0].fc1.weight.shape == (256, 128)
        assert stack.layers[1].moe.experts.fc1_weight.shape == (8, 256, 128)
        assert stack.layers[0].self_attn.num_heads == 4


@pytest.mark.parametrize(
    ("routing", "kind"),
    [
        ("source", TaskGates), ("target", TaskGates), ("pair", TaskGates), ("group", TaskGates),
        ("sentence", SentenceRouter), ("token", TokenRouter),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_flags_reach_the_layers(tmp_path, stack: str, routing: str, kind: type) -> None:
    model = build_grouped(
        tmp_path, moe_expert_count=5, moe_top_k=3, moe_expert_ffn_dim=12, moe_router_jitter=0.1,
        moe_expert_dropout=0.3, moe_capacity_factor=1.5, moe_eval_capacity_factor=2.0,
        **{"encoder_moe_routing": "token", "decoder_moe_routing": "token", f"{stack}_moe_routing": routing},
    )  # fmt: skip
    layer = getattr(model, stack).layers[1].moe
    router = layer.router or getattr(model, stack).tasks.gates
    assert type(router) is kind
    assert router.top_k == 3
    assert getattr(router, "gate", router).jitter == 0.1
    assert layer.experts.fc1_bias.shape == (5, 12)
    assert layer.experts.dropout_module.p == 0.3
    capacity = (1.5, 2.0) if routing == "token" else (0.0, 0.0)
    assert (layer.capacity_factor, layer.eval_capacity_factor) == capacity


def test_each_task_level_stack_may_have_a_static_gate() -> None:
    model = build_model(moe_task_gate="static", decoder_moe_routing="token")
    assert type(model.encoder.tasks.gates) is StaticTaskGates
    assert model.decoder.tasks is None
    assert type(model.decoder.layers[1].moe.router) is TokenRouter


def test_experts_have_the_activation_dropout_unless_told_otherwise() -> None:
    for flags, expected in (({}, 0.0), ({"activation_dropout": 0.2}, 0.2), ({"relu_dropout": 0.1}, 0.1),
                            ({"activation_dropout": 0.2, "moe_expert_dropout": 0.0}, 0.0)):  # fmt: skip
        assert build_model(**flags).encoder.layers[1].moe.experts.dropout_module.p == expected, flags


def test_experts_start_different_from_each_other() -> None:
    weight = build_model().encoder.layers[1].moe.experts.fc1_weight
    assert not torch.equal(weight[0], weight[1])


def test_a_model_carries_its_languages_pairs_and_groups(tmp_path) -> None:
    args = build_grouped(tmp_path, encoder_moe_routing="group").args
    assert args.taskmoe_langs == ",".join(LANGS)
    assert args.taskmoe_lang_pairs == ",".join(PAIRS)
    assert '"de-fr": "mixed"' in args.taskmoe_groups


def test_a_model_from_a_checkpoint_keeps_its_languages_and_reads_no_group_file(tmp_path) -> None:
    trained = build_grouped(tmp_path, encoder_moe_routing="group").args
    (tmp_path / "groups.tsv").unlink()
    again = type(build_model()).build_model(trained, StubTask(pairs=["en-de"]))
    assert again.encoder.moe_config.table.names == ("germanic", "mixed")


def test_training_tokens_weigh_the_tasks_of_each_stack() -> None:
    model = build_model(encoder_moe_routing="source", decoder_moe_routing="pair")
    ids = {lang: index for index, lang in enumerate(LANGS, 1)}
    tokens = {
        ("en", "de"): (30, 1),
        ("de", "en"): (10, 2),
        ("en", "fr"): (50, 3),
        ("fr", "en"): (10, 4),
        ("de", "fr"): (0, 0),
    }
    model.set_training_tokens({(ids[s], ids[t]): counts for (s, t), counts in tokens.items()})
    records = model(**net_input(rows()))[1]["moe"]
    assert records["encoder"][0].share.tolist() == pytest.approx([0.8, 0.1, 0.1])
    assert records["decoder"][0].share.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_shares_of_tasks_survive_half_precision(dtype: torch.dtype) -> None:
    model = build_model(encoder_moe_routing="source")
    model.to(dtype).set_training_tokens({(1, 2): (7_000_000_000, 1), (2, 1): (3_000_000_000, 1)})
    record = model.float()(**net_input(rows()))[1]["moe"]["encoder"][0]
    assert record.share.sum().item() == pytest.approx(1.0)
    assert record.share.tolist() == pytest.approx([0.7, 0.3, 0.0], abs=0.003)


@pytest.mark.parametrize("routing", ["source", "token"])
def test_a_copy_of_a_model_is_independent(routing: str) -> None:
    model = build_model(encoder_moe_routing=routing)
    twin, batch = copy.deepcopy(model), net_input(rows())
    before = model(**batch)[0]
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert torch.equal(model(**batch)[0], before)
    changed = twin(**batch)[0]
    assert not torch.allclose(changed, before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(**batch)[0], changed)


def test_an_exponential_moving_average_of_a_model_can_be_kept() -> None:
    model = build_model()
    ema = EMA(model, EMAConfig(store_ema=True, ema_decay=0.5))
    name = "encoder.layers.1.moe.experts.fc1_weight"
    before = model.state_dict()[name].clone()
    model.set_training_tokens({(1, 2): (30, 30), (2, 1): (10, 10)})
    with torch.no_grad():
        model.get_parameter(name).add_(1.0)
    ema.step(model)
    torch.testing.assert_close(ema.get_model().state_dict()[name], before + 0.5)
    assert ema.get_model()(**net_input(rows()))[0].isfinite().all()
