#!/usr/bin/env python3
"""Write down what is left of a model when it is converted: sizes, scores and speed, as one JSON file.

Converts a checkpoint (taskmoe convert), cuts a subnet of each direction out of it (taskmoe extract), translates the
test set of WORK_DIR with what comes out, and scores it. Of several checkpoints the subnets make an ensemble.
Translations are left in WORK_DIR/conversions/NAME, where those of another NAME are for --baseline.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import text
from conversion_decoders import Decoder, make_decoder
from record_system import bootstrap, commit
from score import score_direction
from taskmoe_plugin.cli.main import main as taskmoe
from taskmoe_plugin.convert.source import Source
from taskmoe_plugin.subnet.report import Size
from text import Direction, TextError

PACKAGES = ("torch", "ctranslate2", "sacrebleu", "sentencepiece")


@dataclass(frozen=True)
class Made:
    """What came out of one checkpoint.

    Attributes:
        models: for each direction its model, a file of fairseq or a directory of CTranslate2.
        direction_bytes, whole_bytes: of the weights that one direction needs, and that all of them need.
        commands: what made it.
    """

    models: dict[str, Path]
    direction_bytes: float
    whole_bytes: float
    commands: list[list[str]]


def make(checkpoint: Path, args: argparse.Namespace, directory: Path) -> Made:
    """Convert a checkpoint, and cut subnets out of it if that is asked for."""
    path, commands = checkpoint, []
    for number, words in enumerate(map(shlex.split, args.convert)):
        converted = directory / f"converted{number}.pt"
        commands.append(["convert", words[0], str(path), "--output", str(converted), *words[1:]])
        path = converted
    subnets = directory / "subnets"
    if args.extract is not None:
        binary, options = str(args.work_dir / "binary"), shlex.split(args.extract)
        places = ["--path", str(path), "--lang-pairs", args.lang_pairs, "--output-dir", str(subnets)]
        commands.append(["extract", binary, *places, *options])
    for command in commands:
        taskmoe(command)
    told = [["taskmoe", *(word.replace(str(directory), "SCRATCH") for word in command)] for command in commands]
    pairs = args.lang_pairs.split(",")
    if args.extract is None:
        size = Size.of_model(Source.open(path).tensors).bytes
        return Made(dict.fromkeys(pairs, path), size, size, told)
    files = {pair: subnets / pair / "model.pt" for pair in pairs}
    models = {pair: file if file.exists() else file.parent for pair, file in files.items()}
    weights = [model if model.is_file() else model / "model.bin" for model in models.values()]
    sizes = [file.stat().st_size for file in weights]
    return Made(models, statistics.mean(sizes), sum(sizes), told)


def translate(made: Sequence[Made], directions: Sequence[Direction], args: argparse.Namespace, output: Path) -> float:
    """Translate every direction with all models at once; returns tokens per second of a core.

    Leaves the translations, and the references beside them.
    """
    tokens, seconds = 0, 0.0
    for direction in directions:
        name = text.find_name(args.work_dir / "text", "test", direction)
        if name is None:
            raise TextError(f"{args.work_dir / 'text'}: no test text for {direction}")
        paths = [args.work_dir / "text" / f"test.{name}.{lang}" for lang in direction]
        sources, references = (list(islice(text.read_lines(path), args.sentences)) for path in paths)
        decoder: Decoder = make_decoder([each.models[str(direction)] for each in made], args.work_dir, direction)
        found = decoder.translate(sources, args.beam)
        for place, lines in zip(files_of(output, direction), (found.lines, references)):
            place.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        tokens, seconds = tokens + found.tokens, seconds + found.seconds
    return tokens / seconds


def files_of(output: Path, direction: Direction) -> tuple[Path, Path]:
    """The translations of a direction, and its references."""
    return output / f"{direction}.txt", output / f"{direction}.reference"


def record(args: argparse.Namespace) -> dict[str, Any]:
    """All that is known of one conversion."""
    directions = text.parse_directions(args.lang_pairs)
    output, baseline = (args.work_dir / "conversions" / str(name) for name in (args.name, args.baseline))
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        places = [Path(scratch, str(number)) for number in range(len(args.checkpoint))]
        for place in places:
            place.mkdir()
        made = [make(checkpoint, args, place) for checkpoint, place in zip(args.checkpoint, places)]
        speed = translate(made, directions, args, output)
    files = {each: files_of(output, each) for each in directions}
    scores = {str(each): score_direction(*paths, each.target) for each, paths in files.items()}
    signatures = {name: {each.pop(name) for each in scores.values()} for name in ("bleu_signature", "chrf_signature")}

    def portable(words: Sequence[str]) -> str:
        text = shlex.join(words).replace(str(args.output), f"RESULTS/{args.output.name}")
        return text.replace(str(args.work_dir), "WORK_DIR")

    found: dict[str, Any] = {
        "name": args.name,
        "training": portable(["fairseq-train", "WORK_DIR/binary", *args.flags]),
        "conversion": [portable(command) for each in made for command in each.commands],
        "command": portable([Path(sys.argv[0]).name, *sys.argv[1 : len(sys.argv) - len(args.flags)]]),
        **{name: sorted(each) for name, each in signatures.items()},
        "beam": args.beam,
        "commit": commit(),
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in PACKAGES},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": 1},
        "bytes": {
            "direction": sum(each.direction_bytes for each in made),
            "whole": sum(each.whole_bytes for each in made),
        },
        "tokens_per_second": speed,
        "directions": scores,
    }
    if args.baseline:
        found["baseline"] = args.baseline
        found["against"] = {
            str(each): bootstrap(translated, baseline / translated.name, reference, each.target)
            for each, (translated, reference) in files.items()
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="has text, vocabulary and binary")
    parser.add_argument("--name", required=True, help="what to call it, as in merged.4_bits")
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True)
    parser.add_argument("--lang-pairs", required=True, help="directions to translate, such as en-de,de-en")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--convert", action="append", default=[], metavar="WORDS", help="as in 'quantize --bits 4'; one after the other"
    )
    parser.add_argument(
        "--extract", nargs="?", const="", metavar="FLAGS", help="translate with subnets, as in --extract=--half=fp16"
    )
    parser.add_argument("--baseline", metavar="NAME", help="what to test differences against")
    parser.add_argument("--beam", type=int, default=4, help="default: 4")
    parser.add_argument("--sentences", type=int, help="how many of each test set, the first ones; default: all")
    parser.add_argument("flags", nargs="*", help="after --: the flags that the model was trained with")
    args = parser.parse_args()
    partial = args.output.with_name(args.output.name + ".partial")
    partial.write_text(json.dumps(record(args), indent=1) + "\n", encoding="utf-8")
    partial.rename(args.output)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    text.run(main)
