"""Every token is computed by exactly k experts, padding by none."""

from __future__ import annotations

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator

from taskmoe_plugin.moe import Experts, FeedForward
from tests.helpers.models import COMBINATIONS, build_grouped, dictionary, net_input, rows


class Tally:
    """Counts, for every MoE layer of a model, the inputs that its experts compute.

    In training, for in evaluation a batch of one task uses a network that its experts are folded to.
    """

    def __init__(self, model) -> None:
        self.inputs: dict[str, list[torch.Tensor]] = {}
        for name, module in model.train().named_modules():
            if isinstance(module, Experts):
                layer = name.removesuffix(".experts")
                module.register_forward_pre_hook(
                    lambda _, args, layer=layer: self.inputs.setdefault(layer, []).append(args[0])
                )

    def counts(self) -> dict[str, list[int]]:
        """For every layer, how often each distinct input was computed."""
        return {
            layer: torch.cat(inputs).unique(dim=0, return_counts=True)[1].tolist()
            for layer, inputs in self.inputs.items()
        }


@pytest.fixture(params=COMBINATIONS, ids="/".join)
def routings(request) -> dict[str, str]:
    encoder, decoder = request.param
    return {"encoder_moe_routing": encoder, "decoder_moe_routing": decoder}


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_every_token_is_computed_by_exactly_k_experts_and_padding_by_none(
    tmp_path, routings, k: int, left: bool
) -> None:
    model = build_grouped(tmp_path, moe_freq=1, moe_expert_count=4, moe_top_k=k, **routings)
    batch = net_input(rows(), left=left, extra=2)
    tally = Tally(model)
    model(**batch)
    pad = dictionary().pad()
    tokens = {
        "encoder": batch["src_tokens"].ne(pad).sum().item(),
        "decoder": batch["prev_output_tokens"].ne(pad).sum().item(),
    }
    counts = tally.counts()
    assert len(counts) == 4
    for layer, each in counts.items():
        # Equal activations of different tokens would be one input of a multiple of k.
        assert all(count % k == 0 for count in each), layer
        assert sum(each) == k * tokens[layer.split(".")[0]], layer


def test_a_batch_of_one_task_without_padding_is_counted_the_same(tmp_path, routings) -> None:
    model = build_grouped(tmp_path, moe_freq=1, moe_expert_count=4, **routings)
    batch = net_input(rows(1) * 3)
    tally = Tally(model)
    model(**batch)
    lengths = {"encoder": batch["src_tokens"].numel(), "decoder": batch["prev_output_tokens"].numel()}
    for layer, each in tally.counts().items():
        assert sum(each) == 2 * lengths[layer.split(".")[0]]


def test_generation_computes_each_new_token_by_exactly_k_experts(tmp_path, routings, monkeypatch) -> None:
    model = build_grouped(tmp_path, moe_freq=1, moe_expert_count=4, **routings)
    inputs = net_input(rows(1))
    del inputs["prev_output_tokens"]
    tally, folded, original = Tally(model), [], FeedForward.__call__

    def counting(network: FeedForward, x: torch.Tensor) -> torch.Tensor:
        # A network of twice an expert's width is two experts.
        folded.append(x[..., 0].numel() * network.fc1_bias.numel() // 24)
        return original(network, x)

    monkeypatch.setattr(FeedForward, "__call__", counting)
    hypothesis = SequenceGenerator([model], dictionary(), beam_size=1, max_len_a=0, max_len_b=5, min_len=5).generate(
        [model], {"net_input": inputs}
    )[0][0]
    counts = tally.counts()
    decoder = sum(sum(each) for layer, each in counts.items() if layer.startswith("decoder"))
    encoder = sum(sum(each) for layer, each in counts.items() if layer.startswith("encoder"))
    source, target = 2 * 2 * inputs["src_tokens"].numel(), 2 * 2 * len(hypothesis["tokens"])
    assert encoder + decoder + sum(folded) == source + target
    assert encoder in (0, source)
    assert decoder in (0, target)


def test_padding_counts_in_no_statistic_of_a_model(tmp_path, routings) -> None:
    model = build_grouped(tmp_path, moe_freq=1, moe_expert_count=4, **routings).double()
    records = [model(**net_input(rows(), extra=extra))[1]["moe"] for extra in (0, 5)]
    for stack in ("encoder", "decoder"):
        for one, other in zip(records[0][stack], records[1][stack]):
            torch.testing.assert_close(one.gates.probs, other.gates.probs)
            torch.testing.assert_close(one.share, other.share)
            assert one.share.sum().item() == pytest.approx(1.0)
