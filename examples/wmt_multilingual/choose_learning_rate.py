#!/usr/bin/env python3
"""Of trainings that differ in their learning rate, name the rate with the lowest loss in validation.

Each TRIAL is a directory named by its learning rate, with fairseq's log of the training, train.out.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import text
from text import TextError
from training_log import logged


def final_loss(trial: Path) -> float | None:
    """The loss, in bits, of a trial's last validation; None where it is no number.

    Raises TextError without any.
    """
    losses = [float(each["valid_nll_loss"]) for each in logged(trial / "train.out", "valid")]
    if not losses:
        raise TextError(f"{trial / 'train.out'}: no validation in it; delete {trial} and run again")
    return losses[-1] if math.isfinite(losses[-1]) else None


def choose(trials: list[Path]) -> dict[str, Any]:
    """The rate with the lowest loss, and the losses of all. Raises TextError where every training diverged."""
    losses = {trial.name: final_loss(trial) for trial in trials}
    finite = {rate: loss for rate, loss in losses.items() if loss is not None}
    if not finite:
        raise TextError(f"LEARNING_RATES: trainings with {', '.join(losses)} all diverged; set lower ones")
    return {"chosen": min(finite, key=finite.__getitem__), "valid_nll_loss": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", type=Path, nargs="+", metavar="TRIAL")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write: the rate and all losses")
    args = parser.parse_args()
    found = choose(args.trials)
    partial = args.output.with_name(args.output.name + ".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    partial.rename(args.output)
    print(f"learning rate {found['chosen']}: {found['valid_nll_loss'][found['chosen']]:.3f} bits in validation")


if __name__ == "__main__":
    text.run(main)
