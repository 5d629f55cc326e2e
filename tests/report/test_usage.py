"""What a report says of a model is what the model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils

from taskmoe_plugin.models.config import STACKS
from taskmoe_plugin.moe import Gates, Usage, counted_usage
from taskmoe_plugin.report.content import find_out
from taskmoe_plugin.report.table import summary
from taskmoe_plugin.report.usage import StackUsage, moe_stacks, task_usage
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from tests.helpers.corpus import PAIRS, Corpus
from tests.helpers.tasks import batches, make_task
from tests.helpers.training import routing_flags
from tests.subnet.helpers import write_model


def load(path: Path, task: Any) -> Any:
    [model], _ = checkpoint_utils.load_model_ensemble([str(path)], task=task)
    return model.eval()


def stack_usage(weight: torch.Tensor) -> StackUsage:
    """The usage of a stack with one layer, of tasks with these weights."""
    usage = Usage(weight, (weight > 0).float(), torch.full((len(weight),), 1 / len(weight)))
    return StackUsage(config=None, tasks=tuple("abc"[: len(weight)]), layers={0: usage})  # type: ignore[arg-type]


@pytest.mark.parametrize("routings", [("source", "target"), ("pair", "group")], ids="/".join)
@pytest.mark.parametrize("top_k", [1, 2])
def test_experts_and_weights_of_tasks_are_those_of_the_model(
    corpus: Corpus, template: Path, tmp_path: Path, routings: tuple[str, str], top_k: int
) -> None:
    path = write_model(
        corpus, template, tmp_path / "model.pt", *routing_flags(*routings, tmp_path), "--moe-top-k", top_k
    )
    model, checkpoint = load(path, make_task(corpus)), Checkpoint.open(path)
    for name, config in moe_stacks(checkpoint).items():
        usage, stack = task_usage(checkpoint, config), getattr(model, name)
        assert usage.tasks == stack.tasks.table.names
        assert list(usage.layers) == [1]
        with torch.no_grad():
            gates: Gates = stack.tasks.gates().layers()[0]
        for row in range(len(usage.tasks)):
            found = {expert: float(usage.layers[1].weight[row, expert]) for expert in gates.experts[row].tolist()}
            assert list(found.values()) == gates.weights[row].tolist()
            assert usage.layers[1].weight[row].count_nonzero() == top_k
        assert torch.allclose(usage.layers[1].share, stack.tasks.share)


def test_the_load_of_merged_experts_is_their_share_in_the_networks(
    corpus: Corpus, template: Path, tmp_path: Path
) -> None:
    path = write_model(corpus, template, tmp_path / "model.pt", "--moe-combine", "weights")
    checkpoint = Checkpoint.open(path)
    for config in moe_stacks(checkpoint).values():
        (usage,) = task_usage(checkpoint, config).layers.values()
        assert usage.load.gt(0).all()
        torch.testing.assert_close(usage.load.sum(dim=1), torch.ones(len(usage.share)))
        torch.testing.assert_close(usage.expert_load, usage.share @ usage.weight)
        assert usage.expert_load.max() > 1.01 / config.experts


def test_token_statistics_are_those_of_validation_batches(corpus: Corpus, by_token: Path) -> None:
    report = find_out(by_token, [corpus.bin], "valid", None)
    task = make_task(corpus)
    model = load(by_token, task)
    for usage in report.stacks:
        layers = getattr(model, usage.stack).moe_layers
        total = torch.zeros(len(PAIRS), usage.config.experts, 2)
        for sample in batches(task, "valid"):
            with torch.no_grad(), counted_usage(layers, task.pair_index(sample), len(PAIRS)) as [sums]:
                model(**sample["net_input"])
            total += sums
        expected = Usage.of_counts(total, usage.config.top_k)
        assert usage.tasks == PAIRS
        assert torch.allclose(usage.layers[1].weight, expected.weight, atol=1e-5)
        assert torch.allclose(usage.layers[1].load, expected.load, atol=1e-5)
        assert torch.allclose(usage.layers[1].share, expected.share, atol=1e-5)
        assert usage.layers[1].weight.std(dim=0).max() > 0.01


def test_a_few_sentences_of_each_pair_can_stand_for_all(corpus: Corpus, by_token: Path) -> None:
    few = find_out(by_token, [corpus.bin], "test", 2).stacks[0].layers[1]
    whole = find_out(by_token, [corpus.bin], "test", None).stacks[0].layers[1]
    assert not torch.equal(few.load, whole.load)
    # The test set of en-fr has three sentences, that of en-de twenty-one.
    assert whole.share[PAIRS.index("en-de")] > 3 * whole.share[PAIRS.index("en-fr")]
    assert few.share[PAIRS.index("en-de")] < 3 * few.share[PAIRS.index("en-fr")]


def test_a_stack_that_needs_data_is_left_out_without(corpus: Corpus, mixed: Path) -> None:
    without, with_data = find_out(mixed, [], "valid", None), find_out(mixed, [corpus.bin], "valid", None)
    assert [usage.stack for usage in without.stacks] == ["decoder"]
    assert without.left_out == {"encoder": "token"}
    assert [usage.stack for usage in with_data.stacks] == list(STACKS)
    assert not with_data.left_out


def test_of_tokens_that_choose_among_experts_of_a_language_it_says_which_these_are(
    corpus: Corpus, template: Path, tmp_path: Path
) -> None:
    flags = (*routing_flags("token", "sentence", tmp_path), "--moe-language-experts", 3)
    path = write_model(corpus, template, tmp_path / "model.pt", *flags)
    report = find_out(path, [], "valid", None)
    [usage], stack = report.stacks, load(path, make_task(corpus)).encoder
    with torch.no_grad():
        gates: Gates = stack.tasks.gates().layers()[0]
    assert usage.tasks == stack.tasks.table.names
    torch.testing.assert_close(usage.layers[1].weight, gates.shares)
    assert report.left_out == {"decoder": "sentence"}
    assert [size.form for size in report.subnets] == ["pruned partial, decoder whole"] * len(PAIRS)
    lines = summary(report).splitlines()
    assert lines[0] == "encoder, routed by token: experts (weight, of those that tokens choose among)"
    assert lines[1].split()[0] == "task"
    counted = find_out(path, [corpus.bin], "valid", None)
    assert [usage.tasks for usage in counted.stacks] == [PAIRS, PAIRS]
    for pair, load_of in zip(PAIRS, counted.stacks[0].layers[1].load):
        task = stack.tasks.table.names.index(pair.split("-")[0])
        assert set(load_of.nonzero().flatten().tolist()) <= set(gates.experts[task].tolist())


def test_tasks_are_similar_as_far_as_they_share_experts() -> None:
    weight = torch.tensor([[0.6, 0.4, 0.0, 0.0], [0.6, 0.0, 0.4, 0.0], [0.0, 0.0, 0.0, 0.3]])
    similarity = stack_usage(weight).similarity()
    assert torch.allclose(similarity, torch.tensor([[1.0, 0.6, 0.0], [0.6, 1.0, 0.0], [0.0, 0.0, 1.0]]))


def test_a_task_without_tokens_is_like_no_other() -> None:
    assert stack_usage(torch.tensor([[0.5, 0.5], [0.0, 0.0]])).similarity().tolist() == [[1, 0], [0, 0]]
