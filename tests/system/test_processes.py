"""Two processes that share the work give what one gives, with uneven last shards in training and validation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.subnet.consolidate import consolidate
from tests.helpers.commands import Output
from tests.helpers.corpus import PAIRS, Corpus
from tests.helpers.training import train, train_flags

# 215 sentences in batches of 24 are 9 batches, the 53 of validation in batches of 8 are 7: neither is even.
FLAGS = (
    "--dropout", 0, "--max-tokens", 100_000, "--batch-size", 24, "--batch-size-valid", 8, "--max-epoch", 2,
    "--max-update", 0, "--no-epoch-checkpoints", "--eval-bleu", "--eval-bleu-args", '{"max_len_b": 8}',
    "--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric",
)  # fmt: skip


def train_in_processes(corpus: Corpus, save_dir: Path, count: int, *more: Any) -> Output:
    """Train in several processes; returns what the first of them logged."""
    meeting = save_dir.with_suffix(".meeting").as_uri()
    processes = []
    for rank in range(count):
        flags = train_flags(
            corpus, save_dir, *FLAGS, *more, "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp",
            "--distributed-world-size", count, "--distributed-rank", rank, "--distributed-no-spawn",
            "--distributed-init-method", meeting,
        )  # fmt: skip
        command = [sys.executable, "-m", "fairseq_cli.train", *flags]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, "\n".join(printed)
    lines = [line.split(" | ", 3) for line in printed[0].splitlines()]
    return Output(records=[(fields[2], fields[3]) for fields in lines if len(fields) == 4])


# Where experts are spread, a process whose sentences have ended must not leave the other one waiting for its experts.
@pytest.mark.parametrize(
    "flags",
    [(), ("--moe-expert-parallel",), ("--moe-expert-parallel", "--decoder-moe-routing", "token")],
    ids=["replicated", "spread", "spread by token"],
)
def test_two_processes_give_what_one_gives(corpus: Corpus, tmp_path: Path, flags: tuple[Any, ...]) -> None:
    one = train(corpus, tmp_path / "one", *FLAGS, *flags, "--update-freq", 2)
    two = train_in_processes(corpus, tmp_path / "two", 2, *flags)
    for kind in ("train_inner", "valid"):
        expected, found = one.stats(kind), two.stats(kind)
        assert len(expected) == len(found) == {"train_inner": 10, "valid": 2}[kind]
        prefix = "valid_" if kind == "valid" else ""
        names = [f"{prefix}{name}" for name in ("loss", "nll_loss", "encoder_balance_loss", "decoder_gate_entropy")]
        if kind == "valid":
            names += [f"valid_{pair}_{name}" for pair in PAIRS for name in ("loss", "nll_loss", "bleu")]
        for before, after in zip(expected, found):
            for name in names:
                assert float(after[name]) == pytest.approx(float(before[name]), abs=2e-3), name
    if flags:
        consolidate(tmp_path / "two" / "checkpoint_last.pt", tmp_path / "whole.pt", optimizer=True, force=False)
        (tmp_path / "whole.pt").replace(tmp_path / "two" / "checkpoint_last.pt")
    models = [torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True)["model"] for name in ("one", "two")]
    # Adam makes much of rounding where a gradient is nearly zero.
    torch.testing.assert_close(*models, atol=1e-3, rtol=1e-3)
