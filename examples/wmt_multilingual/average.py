#!/usr/bin/env python3
"""Average the weights of the last checkpoints that training kept, checkpoint_EPOCH_UPDATES.pt, into one model."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch

import taskmoe_plugin.tasks  # noqa: F401  (fairseq's checkpoints hold flags, which the plugin lets load safely)
import text
from text import TextError

NAME = re.compile(r"checkpoint_\d+_(\d+)\.pt")


def last_checkpoints(model_dir: Path, count: int) -> list[Path]:
    """The last ``count`` checkpoints, oldest first. Raises TextError where there are fewer."""
    found = {int(match[1]): path for path in model_dir.iterdir() if (match := NAME.fullmatch(path.name))}
    if len(found) < count:
        raise TextError(
            f"{model_dir}: has {len(found)} checkpoints checkpoint_EPOCH_UPDATES.pt, not {count}; "
            "train on with --keep-interval-updates, or average fewer"
        )
    return [found[updates] for updates in sorted(found)[-count:]]


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)  # type: ignore[no-any-return]


def average(paths: list[Path]) -> dict[str, Any]:
    """The last checkpoint without the state of its optimizer, with the mean of the weights of all.

    Means are taken in float32; what is no floating point number is the last checkpoint's. Raises TextError where
    weights are not in the checkpoint, or not the same ones in all.
    """
    last = load(paths[-1])
    weights = last["model"]
    if not all(isinstance(value, torch.Tensor) for value in weights.values()):
        quantised = "packed_experts" in weights
        why = (
            "is quantised; average what it was made from, and quantise that"
            if quantised
            else "its experts are in other files; make one file of it with taskmoe consolidate"
        )
        raise TextError(f"{paths[-1]}: {why}")
    # Weights that are shared, such as embeddings, have several names and stay one.
    names = {(value.data_ptr(), value.shape): name for name, value in weights.items() if value.is_floating_point()}
    sums = {name: weights[name].to(torch.float32, copy=True) for name in names.values()}
    for path in paths[:-1]:
        others = load(path)["model"]
        if others.keys() != weights.keys():
            raise TextError(f"{path}: has other weights than {paths[-1]}; average checkpoints of one training")
        for name, total in sums.items():
            total += others[name]
    means = {name: (total / len(paths)).to(weights[name].dtype) for name, total in sums.items()}
    for name, value in list(weights.items()):
        if value.is_floating_point():
            weights[name] = means[names[value.data_ptr(), value.shape]]
    last.pop("last_optimizer_state", None)
    return last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, required=True, help="directory of the checkpoints")
    parser.add_argument("--count", type=int, required=True, metavar="N", help="how many")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write")
    args = parser.parse_args()
    paths = last_checkpoints(args.model_dir, args.count)
    print(f"averaging {', '.join(path.name for path in paths)}")
    state = average(paths)
    partial = args.output.with_name(args.output.name + ".partial")
    torch.save(state, partial)
    partial.rename(args.output)


if __name__ == "__main__":
    text.run(main)
