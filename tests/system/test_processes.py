"""Two processes that share the work give what one gives, with uneven last shards in training and validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.subnet.consolidate import consolidate
from tests.helpers.commands import Output
from tests.helpers.corpus import PAIRS, Corpus
from tests.helpers.training import WIDER, train, train_flags
from tests.parallel.jobs import run_train
from tests.parallel.processes import finish, started

# 215 sentences in batches of 8 are 27 batches, the 53 of validation 7: neither is even. It is long enough for sentences
# of different lengths. Adam would make much of rounding where a gradient is nearly zero. The gates' losses are of the
# batches of both processes together, which two batches one after the other are not.
FLAGS = (
    *WIDER, "--max-tokens", 100_000, "--batch-size", 8, "--max-epoch", 4, "--max-update", 0, "--adam-eps", 1e-3,
    "--moe-gate-loss-wt", 0, "--validate-interval", 4, "--save-interval", 4, "--no-epoch-checkpoints",
    "--log-interval", 14, "--eval-bleu", "--eval-bleu-args", '{"max_len_b": 12}', "--best-checkpoint-metric", "bleu",
    "--maximize-best-checkpoint-metric",
)  # fmt: skip


def train_in_processes(corpus: Corpus, save_dir: Path, count: int, *flags: Any) -> tuple[Output, list[list[int]]]:
    """Train in several processes; returns what the first of them logged, and of each the steps of its translations."""
    directory = save_dir.with_suffix(".results")
    directory.mkdir()
    with started(run_train, count, directory, train_flags(corpus, save_dir, *FLAGS, *flags)) as running:
        finish(running)
    found = [torch.load(directory / f"output-{rank}.pt") for rank in range(count)]
    return Output(records=found[0]["records"]), [each["steps"] for each in found]


# Where experts are spread, a process whose sentences have ended must not leave the other one waiting for its experts.
@pytest.mark.parametrize(
    "flags",
    [(), ("--moe-expert-parallel",), ("--moe-expert-parallel", "--decoder-moe-routing", "token")],
    ids=["replicated", "spread", "spread by token"],
)
def test_two_processes_give_what_one_gives(corpus: Corpus, tmp_path: Path, flags: tuple[Any, ...]) -> None:
    one = train(corpus, tmp_path / "one", *FLAGS, *flags, "--update-freq", 2)
    two, steps = train_in_processes(corpus, tmp_path / "two", 2, *flags)
    assert len(steps[0]) == len(steps[1])
    assert any(first != second for first, second in zip(*steps))
    for kind in ("train_inner", "valid"):
        expected, found = one.stats(kind), two.stats(kind)
        assert len(expected) == len(found) == {"train_inner": 4, "valid": 1}[kind]
        prefix = "valid_" if kind == "valid" else ""
        names = [f"{prefix}{name}" for name in ("loss", "nll_loss", "encoder_balance_loss", "decoder_gate_entropy")]
        if kind == "valid":
            names += [f"valid_{pair}_{name}" for pair in PAIRS for name in ("loss", "nll_loss", "bleu")]
        for before, after in zip(expected, found):
            for name in names:
                assert float(after[name]) == pytest.approx(float(before[name]), abs=2e-3), name
    assert float(found[0]["valid_bleu"]) > 1
    if flags:
        consolidate(tmp_path / "two" / "checkpoint_last.pt", tmp_path / "whole.pt", optimizer=True, force=False)
        (tmp_path / "whole.pt").replace(tmp_path / "two" / "checkpoint_last.pt")
    models = [torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True)["model"] for name in ("one", "two")]
    torch.testing.assert_close(*models, atol=1e-5, rtol=1e-5)
