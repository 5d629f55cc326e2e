#!/usr/bin/env python3
"""Split all text into the pieces of a SentencePiece model, files keeping their names.

With --shard-lines, training text goes to several folders: OUTPUT_DIR itself, OUTPUT_DIR/shard2, shard3 and so on,
line by line in turn. A pair has as many shards as it needs to have at most that many lines in each; small pairs are
whole, and only in the first. fairseq trains on one shard of each pair in an epoch, and on the next in the next epoch.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path

import sentencepiece as spm

import text
from text import TextError

LINES_AT_ONCE = 100_000


def chunks(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield the lines in lists that fit into memory."""
    iterator = iter(lines)
    while chunk := list(islice(iterator, LINES_AT_ONCE)):
        yield chunk


def shard_directories(directory: Path, path: Path, shard_lines: int | None) -> list[Path]:
    """The folders in ``directory`` that the lines of a text file are dealt to."""
    if shard_lines is None or not path.name.startswith("train."):
        return [directory]
    count = -(-text.count_lines(path) // shard_lines)
    return [directory, *(directory / f"shard{number}" for number in range(2, count + 1))]


def encode(model: Path, input_dir: Path, output_dir: Path, shard_lines: int | None = None) -> None:
    """Encode every text file of ``input_dir`` to ``output_dir``, which must not exist."""
    paths = sorted(path for split in text.SPLITS for path in input_dir.glob(f"{split}.*-*.*"))
    if not paths:
        raise TextError(f"{input_dir}: no files {{split}}.{{src}}-{{tgt}}.{{lang}}")
    processor = spm.SentencePieceProcessor(model_file=str(model))
    with text.new_directory(output_dir) as partial:
        for path in paths:
            directories = shard_directories(partial, path, shard_lines)
            with contextlib.ExitStack() as stack:
                outputs = []
                for directory in directories:
                    directory.mkdir(exist_ok=True)
                    outputs.append(stack.enter_context((directory / path.name).open("w", encoding="utf-8")))
                turns = cycle(outputs)
                for lines in chunks(text.read_lines(path)):
                    for pieces, output in zip(processor.encode(lines, out_type=str), turns):
                        output.write(" ".join(pieces) + "\n")
            print(f"{path.name}: shards: {len(directories)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="spm.model")
    parser.add_argument("--input-dir", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--shard-lines", type=int, metavar="N", help="training lines in a shard (default: no shards)")
    args = parser.parse_args()
    encode(args.model, args.input_dir, args.output_dir, args.shard_lines)


if __name__ == "__main__":
    text.run(main)
