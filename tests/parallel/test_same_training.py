"""Two processes train as one does on the batches of both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from taskmoe_plugin.parallel.manifest import is_stacked
from tests.parallel.conftest import Trained
from tests.parallel.scenarios import NOISY, SCENARIOS

STACKS = ("encoder", "decoder")
HALF = {"bf16": 0.05, "memory-efficient-bf16": 0.05, "fp16": 0.005, "memory-efficient-fp16": 0.005}
EXACT = [name for name in SCENARIOS if name not in HALF]


def tolerance(name: str) -> float:
    return 1e-6 if SCENARIOS[name].double else 1e-5


def whole(processes: list[dict[str, Tensor]], spread: bool = True) -> dict[str, Tensor]:
    """The parameters of the whole model, of what each process has."""
    return {
        name: torch.cat([process[name] for process in processes]) if spread and is_stacked(name) else each
        for name, each in processes[0].items()
    }


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], within: float) -> None:
    """Compare tensors by name; ``within`` is relative, also to the largest of all, as some are zero but for noise."""
    assert found.keys() == expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, tensor in expected.items():
        difference = (found[name] - tensor).abs()
        assert (difference <= within * (tensor.abs() + largest)).all(), f"{name}: {float(difference.max())}"


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("what", ["gradients", "weights"])
def test_gradients_and_weights_are_those_of_one_process(trained: Trained, name: str, what: str) -> None:
    for update, alone in enumerate(trained.alone[name]):
        together = [process[name][update][what] for process in trained.together]
        spread = SCENARIOS[name].spread
        for parameter in together[0]:
            if not (spread and is_stacked(parameter)):
                torch.testing.assert_close(together[1][parameter], together[0][parameter], rtol=0, atol=0)
        assert_near(whole(together, spread), alone[what], tolerance(name))


@pytest.mark.parametrize("name", EXACT)
def test_losses_statistics_and_norms_are_those_of_one_process(trained: Trained, name: str) -> None:
    for process in trained.together:
        for found, alone in zip(process[name], trained.alone[name]):
            expected = alone["logged"]
            if not SCENARIOS[name].spread:
                # Statistics of gates are means over processes of those of their batches.
                expected = {each: expected[each] for each in expected if each.partition("_")[0] not in STACKS}
            logged = {each: found["logged"][each] for each in expected}
            assert logged == pytest.approx(expected, rel=tolerance(name))


@pytest.mark.parametrize("name", HALF)
def test_half_precision_trains_as_one_process_up_to_its_rounding(trained: Trained, name: str) -> None:
    for update, alone in enumerate(trained.alone[name]):
        together = [process[name][update]["weights"] for process in trained.together]
        assert_near(whole(together), alone["weights"], HALF[name])
    # A gradient of the wrong scale would not show in one step's weights, but in this.
    first = trained.alone[name][0]["gradients"]
    found = whole([process[name][0]["gradients"] for process in trained.together])
    for parameter in first:
        if ".experts." in parameter:
            norm = float(first[parameter].float().norm())
            assert float(found[parameter].float().norm()) == pytest.approx(norm, rel=HALF[name]), parameter


@pytest.mark.parametrize("name", [name for name in SCENARIOS if SCENARIOS[name].spread])
def test_each_process_holds_its_share_of_the_experts(trained: Trained, name: str) -> None:
    for process in trained.together:
        sizes = {tensor.size(0) for each, tensor in process[name][0]["weights"].items() if is_stacked(each)}
        assert sizes <= {2}


def test_replicated_experts_are_on_every_process(trained: Trained) -> None:
    for process in trained.together:
        assert process["replicated"][0]["weights"].keys() == trained.alone["replicated"][0]["weights"].keys()


@pytest.mark.parametrize("name", NOISY)
def test_processes_with_noise_of_their_own_train_the_same_model(trained: Trained, name: str) -> None:
    first, second = (process[f"noisy-{name}"] for process in trained.together)
    assert len(first) == len(NOISY[name].updates)
    for one, other in zip(first, second):
        assert one["logged"] == other["logged"]
        for parameter, weight in one["weights"].items():
            assert weight.isfinite().all()
            if not is_stacked(parameter):
                torch.testing.assert_close(other["weights"][parameter], weight, rtol=0, atol=0)


def test_the_scenarios_are_what_they_are_for(trained: Trained) -> None:
    """Capacity drops something, clipping clips, and experts are unused."""
    assert trained.alone["capacity-logged"][0]["logged"]["decoder_dropped"] > 0.1
    for name in ("clipping", "clipping-task", "bf16"):
        assert trained.alone[name][0]["logged"]["gnorm"] > 0.6
    gradient = trained.alone["unused-experts"][0]["gradients"]["decoder.layers.1.moe.experts.fc1_weight"]
    assert not gradient[3].any()
