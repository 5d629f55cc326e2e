"""The loss is fairseq's plus the gates' losses, and what is logged can be summed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.logging import metrics

from taskmoe_plugin.criterions import TaskMoELabelSmoothedCrossEntropyCriterion
from taskmoe_plugin.moe import balance_loss, mutual_information_loss, z_loss
from tests.helpers.corpus import PAIRS, Corpus
from tests.helpers.models import build_model
from tests.helpers.tasks import batches, make_task

STACKS = ("encoder", "decoder")
GATES = {f"{stack}_{name}" for stack in STACKS
         for name in ("balance_loss", "z_loss", "gate_entropy", "experts_in_use", "dropped")}  # fmt: skip


@pytest.fixture(scope="module")
def task(corpus: Corpus) -> Any:
    return make_task(corpus)


@pytest.fixture(scope="module")
def samples(task: Any) -> list[dict[str, Any]]:
    return list(batches(task, "valid"))


def criterion(task: Any, kind: type = TaskMoELabelSmoothedCrossEntropyCriterion, **flags: Any) -> Any:
    flags = {"sentence_avg": False, "label_smoothing": 0.1, **flags}
    return kind(task, **flags)


def run(criterion: Any, model: Any, sample: dict[str, Any], training: bool = False) -> tuple[torch.Tensor, int, dict]:
    criterion.train(training)
    return criterion(model, sample)


def reduced(criterion: Any, task: Any, logs: list[dict[str, Any]]) -> dict[str, float]:
    """What fairseq prints for these logs."""
    with metrics.aggregate(new_root=True) as logged:
        task.reduce_metrics(logs, criterion)
    return logged.get_smoothed_values()


@pytest.mark.parametrize(
    "flags",
    [{}, {"sentence_avg": True}, {"ignore_prefix_size": 1}, {"label_smoothing": 0.0, "report_accuracy": True}],
    ids=str,
)
def test_without_weights_the_loss_is_fairseqs(task: Any, samples: list, flags: dict) -> None:
    model = build_model(task=task)
    ours = criterion(task, moe_gate_loss_wt=0.0, **flags)
    stock = criterion(task, LabelSmoothedCrossEntropyCriterion, **flags)
    logs: list[list[dict[str, Any]]] = [[], []]
    for sample in samples:
        (loss, size, log), (expected, expected_size, expected_log) = (
            run(each, model, sample) for each in (ours, stock)
        )
        for each, found in zip(logs, (log, expected_log)):
            each.append(found)
        torch.testing.assert_close(loss, expected)
        assert size == expected_size
        assert expected_log.keys() <= log.keys()
        for name, value in expected_log.items():
            assert float(log[name]) == pytest.approx(float(value)), name
    logged, expected_logged = (reduced(each, task, found) for each, found in zip((ours, stock), logs))
    assert expected_logged.keys() <= logged.keys()
    for name in expected_logged.keys() - {"wps"}:
        assert logged[name] == pytest.approx(expected_logged[name], abs=2e-3), name


@pytest.mark.parametrize("routing", [("source", "target"), ("sentence", "token"), ("token", "pair")], ids="/".join)
def test_the_gates_losses_are_added_once_for_every_layer_and_unit_of_sample_size(task, samples, routing) -> None:
    flags = dict(zip(("encoder_moe_routing", "decoder_moe_routing"), routing))
    model = build_model(task=task, moe_freq=1, **flags)
    plain = criterion(task, moe_gate_loss_wt=0.0)
    flags = {"moe_gate_loss_wt": 0.3, "moe_task_gate_loss_wt": 0.2, "moe_z_loss_wt": 0.02}
    weighted = criterion(task, moe_mutual_information_wt=0.4, **flags)
    weights = {stack: 0.3 if each in ("token", "sentence") else 0.2 for stack, each in zip(STACKS, routing)}
    sample = samples[0]
    records = model(**sample["net_input"])[1]["moe"]
    penalty = sum(
        weights[stack] * balance_loss(record.gates, record.share)
        + 0.02 * z_loss(record.gates, record.share)
        + 0.4 * mutual_information_loss(record.gates, record.share)
        for stack in STACKS
        for record in records[stack]
    )
    assert sum(map(len, records.values())) == 4
    (base, size, _), (loss, _, log) = run(plain, model, sample), run(weighted, model, sample)
    torch.testing.assert_close(loss, base + size * penalty)
    assert log["loss"].item() == pytest.approx(loss.item())


def test_the_balance_loss_reaches_the_gates_and_nothing_else(task: Any, samples: list) -> None:
    gradients = []
    for weight in (0.0, 1.0):
        model = build_model(task=task)
        run(criterion(task, moe_task_gate_loss_wt=weight), model, samples[0], training=True)[0].backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, without in gradients[0].items():
        same = without is gradients[1][name] or torch.allclose(without, gradients[1][name])
        assert same == (".tasks.gates." not in name), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("accuracy", [True, False])
def test_every_batch_and_stack_logs_the_same_keys_and_shapes(task, samples, training: bool, accuracy: bool) -> None:
    shapes = set()
    for flags in (
        {},
        {"encoder_moe_freq": 0},
        {"decoder_moe_freq": 0},
        {"moe_freq": 0},
        {"encoder_moe_routing": "token"},
    ):
        model, ours = build_model(task=task, **flags), criterion(task, report_accuracy=accuracy)
        for sample in samples:
            log = run(ours, model, sample, training)[2]
            shapes.add(tuple((name, tuple(torch.as_tensor(value).shape)) for name, value in log.items()))
    (found,) = shapes
    names = {name for name, _ in found}
    assert names >= GATES
    assert {f"pair_{name}" for name in ("loss", "nll_loss", "ntokens")} <= names or training
    assert dict(found).get("pair_loss", (5,)) == (len(PAIRS),)


@pytest.mark.parametrize("stack", STACKS)
def test_a_stack_without_experts_adds_nothing(task: Any, samples: list, stack: str) -> None:
    model = build_model(task=task, **{f"{stack}_moe_freq": 0})
    log = run(criterion(task), model, samples[0])[2]
    assert all(log[name] == 0 for name in GATES if name.startswith(stack))
    assert all(log[name] > 0 for name in GATES if not name.startswith(stack) and not name.endswith("dropped"))


def test_logs_can_be_summed_key_by_key(task: Any, samples: list) -> None:
    """fairseq adds the logs of several processes before it reduces them."""
    ours, model = criterion(task), build_model(task=task, decoder_moe_routing="token")
    assert ours.logging_outputs_can_be_summed()
    logs = [run(ours, model, sample)[2] for sample in samples]
    total = {name: sum(log[name] for log in logs) for name in logs[0]}
    one_by_one, summed = reduced(ours, task, logs), reduced(ours, task, [total])
    assert one_by_one.keys() == summed.keys()
    for name, value in summed.items():
        assert one_by_one[name] == pytest.approx(value, rel=1e-4), name


def test_two_half_batches_log_what_the_whole_batch_logs(task: Any) -> None:
    ours, model = criterion(task), build_model(task=task)
    logs = [
        [run(ours, model, sample)[2] for sample in batches(task, "valid", max_sentences=size)] for size in (1, 1000)
    ]
    assert [len(each) for each in logs] == [53, 1]
    halves, whole = (reduced(ours, task, each) for each in logs)
    for name, value in whole.items():
        assert halves[name] == pytest.approx(value, abs=2e-3), name


def test_the_directions_add_up_to_the_total(task: Any, samples: list) -> None:
    ours, model = criterion(task, moe_gate_loss_wt=0.0), build_model(task=task)
    for sample in samples:
        log = run(ours, model, sample)[2]
        for name in ("loss", "nll_loss", "ntokens"):
            assert log[f"pair_{name}"].sum().item() == pytest.approx(float(log[name]), rel=1e-5)


def test_each_direction_logs_the_loss_of_its_own_sentences(corpus: Corpus, task: Any) -> None:
    ours, model = criterion(task), build_model(task=task)
    logged = reduced(ours, task, [run(ours, model, sample)[2] for sample in batches(task, "valid")])
    stock = criterion(task, LabelSmoothedCrossEntropyCriterion)
    for pair in PAIRS:
        alone = make_task(corpus, "--lang-pairs", pair)
        logs = [run(stock, model, sample)[2] for sample in batches(alone, "valid")]
        expected = reduced(stock, alone, logs)
        for name in ("loss", "nll_loss"):
            assert logged[f"{pair}_{name}"] == pytest.approx(expected[name], abs=2e-3)


def test_what_a_capacity_drops_is_logged(task: Any, samples: list) -> None:
    flags = {"encoder_moe_routing": "token", "moe_capacity_factor": 0.25}
    model = build_model(task=task, **flags).train()
    log = run(criterion(task), model, samples[0], training=True)[2]
    assert 0.5 < log["encoder_dropped"] / log["sample_size"] < 1
    assert log["decoder_dropped"] == 0


@pytest.mark.parametrize("routing", ["token", "sentence", "target"])
def test_no_process_waits_for_another_where_each_has_all_experts(task, samples, routing: str, monkeypatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a collective")

    for name in ("all_reduce", "all_gather", "broadcast", "all_to_all_single"):
        monkeypatch.setattr(torch.distributed, name, refuse)
    model = build_model(task=task, encoder_moe_routing=routing, decoder_moe_routing=routing)
    loss, _, _ = run(criterion(task, moe_gate_loss_wt=0.1, moe_z_loss_wt=0.1), model, samples[0], training=True)
    loss.backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_gates_losses_are_fp32_under_autocast(task, samples, dtype: torch.dtype) -> None:
    model = build_model(task=task, encoder_moe_routing="token", decoder_moe_routing="token")
    ours = criterion(task, moe_gate_loss_wt=0.1, moe_z_loss_wt=0.1)
    with torch.autocast("cpu", dtype=dtype):
        loss, _, log = run(ours, model, samples[0], training=True)
    assert all(log[name].dtype == torch.float32 for name in GATES)
    loss.backward()
    assert all(each.grad.isfinite().all() for each in model.parameters())
