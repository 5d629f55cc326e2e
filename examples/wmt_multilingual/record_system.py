#!/usr/bin/env python3
"""Write down what one system of the comparison reached: settings, scores, sizes and speeds, as one JSON file.

Reads what compare_system.sh left in WORK_DIR: the checkpoint, the translations of the full model, of its subnets and of
directions that it was not trained on, and fairseq's log of the training. BASELINE_DIR holds the same of the system
that this one is tested against.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest

import text
from score import read_translations, score_direction
from taskmoe_plugin.parallel.manifest import is_stacked
from taskmoe_plugin.report.usage import StackUsage, moe_stacks, task_usage
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from text import Direction, TextError

LOGGED = re.compile(r"\| (train_inner|valid) \| (\{.*\})$")


def reference_of(work_dir: Path, direction: Direction) -> Path:
    """The test text that translations of a direction are scored against."""
    name = text.find_name(work_dir / "text", "test", direction)
    if name is None:
        raise TextError(f"{work_dir / 'text'}: no test text for {direction}")
    return work_dir / "text" / f"test.{name}.{direction.target}"


def bootstrap(hypotheses: Path, baseline: Path, reference: Path, lang: str) -> dict[str, Any]:
    """The difference in BLEU from a baseline and its p-value, from sacrebleu's paired bootstrap of 1,000 samples."""
    systems: list[tuple[str, Sequence[str]]] = [(str(path), read_translations(path)) for path in (baseline, hypotheses)]
    references = [list(text.read_lines(reference))]
    found: Any = PairedTest(systems, {"BLEU": BLEU(trg_lang=lang)}, references, test_type="bs", n_samples=1000)()
    before, after = found[1]["BLEU"]
    difference = after.score - before.score
    # sacrebleu counts the samples that differ by more than this, of which equal systems have none: 1 in 1,001.
    return {"difference": difference, "p": after.p_value if difference else 1.0}


def scores(work_dir: Path, folder: str, directions: list[Direction]) -> dict[str, Any]:
    """sacrebleu's scores of the translations in a folder, by direction; BLEU without regard to case as well."""
    found = {}
    for each in directions:
        hypotheses, reference = work_dir / folder / f"{each}.txt", reference_of(work_dir, each)
        score = score_direction(hypotheses, reference, each.target)
        found[str(each)] = score | {"bleu_lowercase": lowercase_bleu(hypotheses, reference, each.target)}
    return found


def lowercase_bleu(hypotheses: Path, reference: Path, lang: str) -> float:
    """sacrebleu's BLEU of lower-cased text."""
    references = [list(text.read_lines(reference))]
    return float(BLEU(trg_lang=lang, lowercase=True).corpus_score(read_translations(hypotheses), references).score)


def parameters(checkpoint: Path, flags: list[str]) -> dict[str, int]:
    """How many parameters a model has, and how many of them a token uses."""
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["model"]
    shared: dict[int, int] = {}
    experts = used = 0
    for name, tensor in weights.items():
        if is_stacked(name):
            experts += tensor.numel()
            used += tensor[0].numel() * int(flags[flags.index("--moe-top-k") + 1])
        elif tensor.is_floating_point():
            shared[tensor.data_ptr()] = tensor.numel()
    return {"total": sum(shared.values()) + experts, "active": sum(shared.values()) + used}


def updates_of(checkpoint: Path) -> int:
    """How many updates a checkpoint has seen."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return int(state["optimizer_history"][-1]["num_updates"])


def task_gates(checkpoint: Path) -> dict[str, dict[str, float]]:
    """For each stack that routes by task: what its gates have learnt, as means over its MoE layers.

    The share of experts that no task uses, the similarity of two different tasks (1 where they share all experts with
    equal weights, 0 where none), and the weight of a task's first expert.
    """
    opened = Checkpoint.open(checkpoint)
    return {
        name: describe(task_usage(opened, config, layers))
        for name, (config, layers) in moe_stacks(opened).items()
        if config.table is not None
    }


def describe(usage: StackUsage) -> dict[str, float]:
    """What ``task_gates`` says of one stack."""
    weights = torch.stack([each.weight for each in usage.layers.values()])
    tasks = len(usage.tasks)
    others = usage.similarity().sum() - tasks
    return {
        "unused": float((weights.amax(dim=1) == 0).float().mean()),
        "similarity": float(others / max(tasks * (tasks - 1), 1)),
        "first_weight": float(weights.amax(dim=2).mean()),
    }


def logged(log: Path, kind: str) -> Iterator[dict[str, Any]]:
    """What fairseq logged of one kind, from lines such as ``... | train_inner | {"epoch": 1, ...}``."""
    for line in log.read_text(encoding="utf-8").splitlines():
        found = LOGGED.search(line)
        if found and found[1] == kind:
            yield json.loads(found[2])


def words_per_second(work_dir: Path, intervals: list[dict[str, Any]]) -> float | None:
    """Words of training for each second of the processor; None after an interruption, for its seconds are lost."""
    lines = (work_dir / "train.seconds").read_text().splitlines()
    if len(lines) != 2:
        return None
    updates = [0, *(int(each["num_updates"]) for each in intervals)]
    words = sum((after - before) * float(each["wpb"]) for before, after, each in zip(updates, updates[1:], intervals))
    return words / float(lines[1])


def training(work_dir: Path, updates: int) -> dict[str, Any]:
    """What the log says of the training: its speed, its end, and the loss of the checkpoint with so many updates."""
    log = work_dir / "train.out"
    intervals = list(logged(log, "train_inner"))
    losses = {int(each["valid_num_updates"]): float(each["valid_nll_loss"]) for each in logged(log, "valid")}
    if not intervals or updates not in losses:
        raise TextError(f"{log}: no training in it; delete the directory and run the system again")
    last = {name: float(value) for name, value in intervals[-1].items()}
    gates = ("experts_in_use", "gate_entropy", "balance_loss")
    return {
        "updates": updates,
        "words_per_processor_second": words_per_second(work_dir, intervals),
        "valid_nll_loss": losses[updates],
        "gates": {stack: {name: last[f"{stack}_{name}"] for name in gates} for stack in ("encoder", "decoder")},
    }


def commit() -> str:
    """The commit of the working tree, marked where it has changes; empty outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def record(args: argparse.Namespace) -> dict[str, Any]:
    """All that is known of one run."""
    work_dir, data_dir = args.work_dir, args.baseline_dir.parent
    directions = text.parse_directions(args.lang_pairs)
    checkpoint = work_dir / "model" / args.checkpoint
    found: dict[str, Any] = {
        "data": args.data,
        "system": args.system,
        "seed": args.seed,
        "flags": [each.replace(str(work_dir), "WORK_DIR").replace(str(data_dir), "DATA_DIR") for each in args.flags],
        "commit": commit(),
        "versions": {name: version(name) for name in ("torch", "sacrebleu", "sentencepiece")},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": os.environ["OMP_NUM_THREADS"]},
        "parameters": parameters(checkpoint, args.flags),
        "training": training(work_dir, updates_of(checkpoint)),
        "task_gates": task_gates(checkpoint),
        "directions": scores(work_dir, "translations", directions),
    }
    if (work_dir / "subnet_translations" / "finished").exists():
        found["subnets"] = scores(work_dir, "subnet_translations", directions)
    if (work_dir / "zero_shot_translations" / "finished").exists():
        untrained = text.parse_directions(args.zero_shot_pairs)
        found["zero_shot"] = scores(work_dir, "zero_shot_translations", untrained)
    if args.baseline_dir.resolve() != work_dir.resolve():
        found["baseline"] = args.baseline_dir.name.rpartition("-")[0]
        for direction in directions:
            ours, theirs = (each / "translations" / f"{direction}.txt" for each in (work_dir, args.baseline_dir))
            tested = bootstrap(ours, theirs, reference_of(work_dir, direction), direction.target)
            found["directions"][str(direction)]["against_baseline"] = tested
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--work-dir", "--baseline-dir", "--output"):
        parser.add_argument(flag, type=Path, required=True)
    for flag in ("--system", "--data", "--lang-pairs", "--checkpoint"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--zero-shot-pairs", default="", help="directions that were not trained")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("flags", nargs="*", help="after --: the flags of the model and of its training")
    args = parser.parse_args()
    partial = args.output.with_name(args.output.name + ".partial")
    partial.write_text(json.dumps(record(args), indent=1) + "\n", encoding="utf-8")
    partial.rename(args.output)


if __name__ == "__main__":
    text.run(main)
