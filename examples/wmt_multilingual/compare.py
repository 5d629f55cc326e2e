#!/usr/bin/env python3
"""Compare the full model with its subnets: BLEU, size and decoding speed of every direction.

Reads the translations of all three in WORK_DIR, the logs beside them, and the models; prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import text
from score import score_direction
from text import Direction, TextError

SPEED = re.compile(r"([\d.]+) tokens/s\)")
SYSTEMS = {"full": "translations", "subnet": "subnet_translations", "int8": "ctranslate2_translations"}


def size(path: Path) -> int:
    """Bytes of a model file, or of a directory's."""
    return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size


def model_bytes(work_dir: Path, direction: Direction) -> dict[str, int]:
    """Bytes of each system's weights for a direction; of the full model, without the state of its optimizer."""
    subnet = work_dir / "subnets" / str(direction)
    details = json.loads((subnet / "subnet.json").read_text(encoding="utf-8"))
    return {
        "full": details["full_model"]["bytes"],
        "subnet": size(subnet / "model.pt"),
        "int8": size(work_dir / "ctranslate2" / str(direction) / "model.bin"),
    }


def speed(log: Path) -> float:
    """Target tokens per second that a log reports last. Raises TextError if it reports none."""
    found = SPEED.findall(log.read_text(encoding="utf-8"))
    if not found:
        raise TextError(f"{log}: says nothing of speed; delete the directory and translate again")
    return float(found[-1])


def compare(work_dir: Path, directions: list[Direction], tokenize: str) -> dict[str, Any]:
    """BLEU, bytes and tokens per second of each system for each direction; ``tokenize`` as in ``score_direction``."""
    rows = {}
    for direction in directions:
        name = text.find_name(work_dir / "text", "test", direction)
        if name is None:
            raise TextError(f"{work_dir / 'text'}: no test text for {direction}")
        reference = work_dir / "text" / f"test.{name}.{direction.target}"
        sizes = model_bytes(work_dir, direction)
        rows[str(direction)] = {
            system: {
                "bleu": score_direction(work_dir / folder / f"{direction}.txt", reference, direction.target, tokenize)[
                    "bleu"
                ],
                "bytes": sizes[system],
                "tokens_per_second": speed(work_dir / folder / f"{direction}.log"),
            }
            for system, folder in SYSTEMS.items()
        }
    return rows


def table(rows: dict[str, Any]) -> str:
    """Lay the comparison out for the terminal."""
    columns = [("bleu", 1.0, ".2f"), ("bytes", 1e-6, ".1f"), ("tokens_per_second", 1.0, ".0f")]
    heads = ["BLEU", "MB", "tokens/s"]
    lines = [
        " " * 10 + "".join(f"{head:^24}" for head in heads),
        f"{'direction':<10}" + "".join(f"{system:>8}" for _ in heads for system in SYSTEMS),
    ]
    for direction, row in rows.items():
        cells = [format(row[system][name] * scale, form) for name, scale, form in columns for system in SYSTEMS]
        lines.append(f"{direction:<10}" + "".join(f"{cell:>8}" for cell in cells))
    means = [
        format(sum(row[system][name] for row in rows.values()) / len(rows) * scale, form)
        for name, scale, form in columns
        for system in SYSTEMS
    ]
    return "\n".join([*lines, f"{'average':<10}" + "".join(f"{cell:>8}" for cell in means)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--lang-pairs", required=True, help="directions to compare, such as en-de,de-en")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--tokenize", default="13a", metavar="NAME", help="sacrebleu's tokenizer (default: 13a)")
    args = parser.parse_args()
    rows = compare(args.work_dir, text.parse_directions(args.lang_pairs), args.tokenize)
    partial = args.output.with_name(args.output.name + ".partial")
    partial.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    partial.rename(args.output)
    print(table(rows))


if __name__ == "__main__":
    text.run(main)
