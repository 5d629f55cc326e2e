"""What fairseq would silently get wrong is refused before training, with the flag to use instead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from taskmoe_plugin.errors import one_line_errors
from taskmoe_plugin.parallel.flags import check_flags
from tests.helpers.corpus import Corpus
from tests.helpers.tasks import make_args
from tests.parallel.scenarios import RESHARDED
from tests.parallel.training import make_trainer, stage_directory

SPREAD = ("--moe-expert-parallel", "--ddp-backend", "legacy_ddp")
LAUNCH = "taskmoe launch --processes N -- fairseq-train"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def refusal(capsys: pytest.CaptureFixture[str], call: Any, *args: Any) -> str:
    """The one line with which a call is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit, one_line_errors():
        call(*args)
    assert exit.value.code == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("taskmoe: error: ")]
    return line


@pytest.mark.parametrize(
    ("flags", "named", "advice"),
    [
        (("--moe-expert-count", 7), "--moe-expert-count 7", "use 1, 7 processes"),
        (("--ddp-backend", "fully_sharded"), "--ddp-backend fully_sharded", "--ddp-backend pytorch_ddp or legacy_ddp"),
        (("--ddp-backend", "slowmo"), "--ddp-backend slowmo", "--ddp-backend pytorch_ddp or legacy_ddp"),
        (("--fp16",), "--fp16", "--fp16-no-flatten-grads"),
        (("--amp",), "--amp", "--bf16"),
        (("--use-bmuf",), "--use-bmuf", "leave it out"),
        (("--store-ema",), "--store-ema", "leave it out"),
        (("--no-save-optimizer-state",), "--no-save-optimizer-state", "leave it out"),
        (("--encoder-layerdrop", 0.1), "--encoder-layerdrop", "leave it out"),
        (("--decoder-layers-to-keep", "0,1"), "--decoder-layers-to-keep", "leave it out"),
        (("--zero-sharding", "os"), "--zero-sharding", "leave it out"),
    ],
)
def test_flags_that_cannot_work_with_spread_experts_are_refused(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], flags: tuple[Any, ...], named: str, advice: str
) -> None:
    args = make_args(corpus, *SPREAD, *flags)
    line = refusal(capsys, check_flags, args, 2)
    assert line.startswith(f"taskmoe: error: {named}: ")
    assert advice in line
    check_flags(args, 1)


@pytest.mark.parametrize(
    "flags",
    [
        ("--bf16",),
        ("--memory-efficient-bf16",),
        ("--memory-efficient-fp16",),
        ("--fp16", "--fp16-no-flatten-grads"),
        ("--ddp-backend", "no_c10d"),
    ],
)
def test_flags_that_work_with_spread_experts_are_taken(corpus: Corpus, flags: tuple[Any, ...]) -> None:
    check_flags(make_args(corpus, *SPREAD, *flags), 2)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--distributed-world-size", 2), "--distributed-world-size 2: "),
        (("--distributed-init-method", "tcp://127.0.0.1:1"), "--distributed-init-method tcp://127.0.0.1:1: "),
    ],
)
def test_without_gpus_fairseqs_own_launching_is_refused(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], flags: tuple[Any, ...], named: str
) -> None:
    line = refusal(capsys, make_args, corpus, *flags)
    assert named in line
    assert LAUNCH in line


def test_without_gpus_torchrun_is_refused(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = refusal(capsys, make_args, corpus)
    assert "torchrun: " in line
    assert LAUNCH in line


def test_flattened_fp16_cannot_go_on_from_spread_experts(
    corpus: Corpus, unbroken: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = stage_directory(corpus, "adam", 1)
    scenario = RESHARDED["adam"]
    flat = replace(scenario, training=(*scenario.training, "--fp16"), spread=False)
    line = refusal(capsys, make_trainer, corpus, flat, 1, 0, directory)
    assert f"--fp16: {directory / 'checkpoint_last.pt'} has the optimizer state of experts" in line
    assert "--fp16-no-flatten-grads, or --reset-optimizer" in line
    for flag in ("--fp16-no-flatten-grads", "--reset-optimizer"):
        make_trainer(corpus, replace(flat, training=(*flat.training, flag)), 1, 0, directory)
