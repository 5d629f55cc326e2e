#!/usr/bin/env python3
"""Write down what one system of the comparison reached: settings, scores, sizes and speeds, as one JSON file.

Reads what compare_system.sh left in WORK_DIR: the checkpoint, the translations of the full model, of its subnets and of
directions that it was not trained on, and fairseq's log of the training. DATA_DIR holds what it left of the systems
that this one is tested against.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest

import text
from recorded_model import parameters, task_gates, updates_of
from score import read_translations, score_direction
from text import Direction, TextError
from training_log import training


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
    """sacrebleu's scores of the translations in a folder, by direction."""
    return {
        str(each): score_direction(work_dir / folder / f"{each}.txt", reference_of(work_dir, each), each.target)
        for each in directions
    }


def significance(work_dir: Path, baselines: list[Path], directions: list[Direction]) -> dict[str, Any]:
    """Of each system that this one is tested against: the difference and its p-value in every direction."""
    found: dict[str, Any] = {}
    for baseline in baselines:
        if baseline.resolve() != work_dir.resolve() and (baseline / "translations" / "finished").exists():
            tested = found[baseline.name.rpartition("-")[0]] = {}
            for each in directions:
                ours, theirs = (folder / "translations" / f"{each}.txt" for folder in (work_dir, baseline))
                tested[str(each)] = bootstrap(ours, theirs, reference_of(work_dir, each), each.target)
    return found


def commit() -> str:
    """The commit of the working tree, marked where it has changes; empty outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def record(args: argparse.Namespace) -> dict[str, Any]:
    """All that is known of one run."""
    work_dir, data_dir = args.work_dir, args.data_dir
    checkpoint = work_dir / "model" / args.checkpoint
    families = [family.split(",") for family in args.families.split()]
    has_subnets = (work_dir / "subnets").exists()
    found: dict[str, Any] = {
        "data": args.data,
        "system": args.system,
        "seed": args.seed,
        "flags": [each.replace(str(work_dir), "WORK_DIR").replace(str(data_dir), "DATA_DIR") for each in args.flags],
        "commit": commit(),
        "versions": {name: version(name) for name in ("torch", "sacrebleu", "sentencepiece")},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": os.environ["OMP_NUM_THREADS"]},
        "learning_rate": json.loads(args.learning_rate.read_text(encoding="utf-8")),
        "parameters": parameters(checkpoint, args.flags, has_subnets),
        "training": training(work_dir, updates_of(checkpoint)),
        "task_gates": task_gates(checkpoint, families),
    }
    folders = {"directions": "translations", "subnets": "subnet_translations", "zero_shot": "zero_shot_translations"}
    for key, folder in folders.items():
        if (work_dir / folder / "finished").exists():
            pairs = args.zero_shot_pairs if key == "zero_shot" else args.lang_pairs
            found[key] = scores(work_dir, folder, text.parse_directions(pairs))
    if "directions" in found:
        baselines = [data_dir / f"{each}-{args.seed}" for each in args.baselines]
        found["against"] = significance(work_dir, baselines, text.parse_directions(args.lang_pairs))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--work-dir", "--data-dir", "--output"):
        parser.add_argument(flag, type=Path, required=True)
    for flag in ("--system", "--data", "--lang-pairs", "--checkpoint"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--learning-rate", type=Path, required=True, help="what choose_learning_rate.py wrote")
    parser.add_argument("--baselines", nargs="*", default=[], help="systems to test this one against")
    parser.add_argument("--zero-shot-pairs", default="", help="directions that were not trained")
    parser.add_argument("--families", default="", help="related languages, as in 'fr,it,pt cs,pl'")
    parser.add_argument("flags", nargs="*", help="after --: the flags of the model and of its training")
    args = parser.parse_args()
    partial = args.output.with_name(args.output.name + ".partial")
    partial.write_text(json.dumps(record(args), indent=1) + "\n", encoding="utf-8")
    partial.rename(args.output)


if __name__ == "__main__":
    text.run(main)
