"""Our Adam beside fairseq's.

They differ in where epsilon acts, which is negligible here: gradients of about 1 come with an epsilon of 1e-12.
"""

from __future__ import annotations

import io
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import optim
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf
from torch import Tensor, nn

from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.optim import adam
from taskmoe_plugin.tasks.flags import check_command
from tests.helpers.corpus import Corpus
from tests.helpers.operators import CountedOperators
from tests.helpers.training import train

OURS, THEIRS = "taskmoe_adam", "adam"
SHAPES = ((3, 4, 5), (7,), (), (2, 6))
WRAPPERS = {
    "fp32": None,
    "fp16": optim.FP16Optimizer,
    "fp16-flat": optim.FP16Optimizer,
    "bf16": optim.FP16Optimizer,
    "amp": optim.AMPOptimizer,
}
DTYPES = {"fp16": torch.float16, "fp16-flat": torch.float16, "bf16": torch.bfloat16}
UPDATES = 4


class Training:
    """Parameters that are trained with made-up gradients by one of fairseq's optimizers, wrapped as its trainer does.

    Args:
        name: of the optimizer.
        precision: one of ``WRAPPERS``.
        shapes: of the parameters.
    """

    def __init__(self, name: str, precision: str = "fp32", shapes: Any = SHAPES, **flags: Any) -> None:
        generator = torch.Generator().manual_seed(1)
        drawn = [torch.randn(shape, generator=generator) for shape in shapes]
        self.parameters = [nn.Parameter(each.to(DTYPES.get(precision))) for each in drawn]
        cfg = OmegaConf.structured(FairseqConfig)
        cfg.common.bf16, cfg.common.fp16_no_flatten_grads = precision == "bf16", precision != "fp16-flat"
        of_adam = {"adam_betas": "(0.9, 0.98)", "adam_eps": 1e-12, "fp16_adam_stats": False}
        cfg.optimizer = {
            "_name": name,
            "lr": [0.1],
            "weight_decay": 0.1,
            **(of_adam if "adam" in name else {}),
            **flags,
        }
        wrapper = WRAPPERS[precision]
        self.optimizer: Any = (
            wrapper.build_optimizer(cfg, self.parameters)
            if wrapper
            else optim.build_optimizer(cfg.optimizer, self.parameters)
        )

    def update(self, number: int) -> Tensor:
        """Make an update; returns the norm of its gradients."""
        generator = torch.Generator().manual_seed(number)
        gradients = [torch.randn(each.shape, generator=generator).to(each.dtype) for each in self.parameters]
        self.optimizer.zero_grad()
        self.optimizer.set_lr(0.1 / number)
        self.optimizer.backward(sum((each * own).sum() for each, own in zip(self.parameters, gradients)))
        self.optimizer.multiply_grads(torch.tensor(0.5))
        norm = self.optimizer.clip_grad_norm(3.0)
        self.optimizer.step()
        return norm

    def tensors(self) -> list[Tensor]:
        """The parameters in single precision and then in that of the model, and the optimizer's state."""
        state = self.optimizer.state_dict()["state"].values()
        moments = [each[key] for each in state for key in ("exp_avg", "exp_avg_sq") if key in each]
        return [each.detach().clone() for each in (*self.optimizer.params, *self.parameters, *moments)]

    def go_on_from(self, other: Training) -> None:
        """Take up the checkpoint of another training."""
        stream = io.BytesIO()
        torch.save((other.optimizer.state_dict(), other.tensors()), stream)
        stream.seek(0)
        state, tensors = torch.load(stream, weights_only=True)
        for each, value in zip((*self.optimizer.params, *self.parameters), tensors):
            each.data.copy_(value)
        self.optimizer.load_state_dict(state)


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """fairseq puts flattened parameters on the present GPU; here that is none, also where there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)


@pytest.fixture(params=["fused", "foreach"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which kernels PyTorch has."""
    if request.param == "foreach":
        monkeypatch.setattr(adam, "has_fused_kernel", lambda *_: False)
    return str(request.param)


@pytest.mark.parametrize("precision", WRAPPERS)
def test_updates_are_those_of_fairseqs(precision: str, kernels: str) -> None:
    ours, theirs = Training(OURS, precision), Training(THEIRS, precision)
    before = ours.tensors()
    for number in range(1, UPDATES + 1):
        torch.testing.assert_close(ours.update(number), theirs.update(number))
        torch.testing.assert_close(ours.tensors(), theirs.tensors(), rtol=1e-5, atol=1e-6)
    for after, each in zip(ours.tensors(), before):
        assert (after != each).any()
    [group] = ours.optimizer.param_groups
    assert (group["fused"], group["foreach"]) == (kernels == "fused", kernels == "foreach")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-flat"])
@pytest.mark.parametrize("then", [OURS, THEIRS])
@pytest.mark.parametrize("first", [OURS, THEIRS])
def test_each_goes_on_from_the_other_as_if_nothing_had_been(first: str, then: str, precision: str) -> None:
    unbroken, begun, resumed = (Training(name, precision) for name in (then, first, then))
    for number in range(1, UPDATES + 1):
        unbroken.update(number)
        (begun if number <= 2 else resumed).update(number)
        if number == 2:
            resumed.go_on_from(begun)
    same = first == then
    torch.testing.assert_close(
        resumed.tensors(), unbroken.tensors(), rtol=0 if same else 1e-5, atol=0 if same else 1e-6
    )
    if then == OURS:
        assert resumed.optimizer.param_groups[0]["fused"]


def test_the_state_is_written_as_fairseqs() -> None:
    ours, theirs = Training(OURS), Training(THEIRS)
    for each in (ours, theirs):
        each.update(1)
    found, expected = (each.optimizer.state_dict()["state"] for each in (ours, theirs))
    assert list(found) == list(expected)
    for number, state in expected.items():
        assert {key: type(value) for key, value in found[number].items()} == {k: type(v) for k, v in state.items()}
        assert found[number]["step"] == state["step"] == 1
    assert type(ours.optimizer).__name__ == type(theirs.optimizer).__name__


def test_fairseq_train_goes_on_from_a_checkpoint_of_the_other(corpus: Corpus, tmp_path: Path) -> None:
    for updates, name in enumerate((THEIRS, OURS, THEIRS), 1):
        flags = ("--optimizer", name, "--max-update", updates, "--clip-norm", 1, "--disable-validation")
        output = train(corpus, tmp_path, *flags)
        numbers = [int(stats["num_updates"]) for stats in output.stats("train_inner")]
        assert numbers == [updates]
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)["last_optimizer_state"]["state"]
    assert {each["step"] for each in state.values()} == {3}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_state_of_another_optimizer_is_refused(precision: str) -> None:
    other = Training("nag", precision, momentum=0.9)
    other.update(1)
    with pytest.raises(UsageError, match=r"the checkpoint has the state of another optimizer; .*--reset-optimizer"):
        Training(OURS, precision).go_on_from(other)


def launches(name: str, precision: str, tensors: int) -> int:
    """The operators of an update, but for forward and backward and the first update's making of the state."""
    training = Training(name, precision, [(2, 3)] * tensors)
    training.update(1)
    training.optimizer.zero_grad()
    training.optimizer.backward(sum(each.sum() for each in training.parameters))
    training.optimizer.multiply_grads(torch.tensor(0.5))
    with CountedOperators() as counted:
        training.optimizer.clip_grad_norm(1.0)
        training.optimizer.step()
    return counted.launches


def test_an_update_costs_the_same_for_any_number_of_tensors() -> None:
    assert launches(OURS, "fp32", 5) == launches(OURS, "fp32", 50) < 15
    assert launches(THEIRS, "fp32", 50) > 50 * 8
    # What is left for each are fairseq's copies to single precision and back.
    assert launches(OURS, "bf16", 50) <= 50 * 2 + 15


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"memory_efficient_fp16": True}, "--memory-efficient-fp16: with --optimizer taskmoe_adam .*--fp16"),
        ({"memory_efficient_bf16": True}, "--memory-efficient-bf16: .*--optimizer adam"),
        ({"fp16_adam_stats": True, "use_old_adam": True}, "--fp16-adam-stats: .*; also: --use-old-adam: "),
        ({"ddp_backend": "fully_sharded"}, "--ddp-backend fully_sharded: .*--optimizer adam"),
        ({"zero_sharding": "os"}, "--zero-sharding os: .*--optimizer adam"),
    ],
)
def test_what_it_cannot_be_used_with(flags: dict[str, Any], message: str) -> None:
    check_command(Namespace(optimizer=THEIRS, **flags))
    with pytest.raises(UsageError, match=message):
        check_command(Namespace(optimizer=OURS, **flags))


def test_a_value_that_is_none() -> None:
    Training(OURS, adam_betas="(0, 0.98)").update(1)
    with pytest.raises(UsageError, match=r"--optimizer taskmoe_adam: Invalid epsilon value: -1\.0; "):
        Training(OURS, adam_eps=-1.0)
