#!/usr/bin/env python3
"""Split all text into the pieces of a SentencePiece model, files keeping their names."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
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


def encode(model: Path, input_dir: Path, output_dir: Path) -> None:
    """Encode every text file of ``input_dir`` to ``output_dir``, which must not exist."""
    paths = sorted(path for split in text.SPLITS for path in input_dir.glob(f"{split}.*-*.*"))
    if not paths:
        raise TextError(f"{input_dir}: no files {{split}}.{{src}}-{{tgt}}.{{lang}}")
    processor = spm.SentencePieceProcessor(model_file=str(model))
    with text.new_directory(output_dir) as partial:
        for path in paths:
            with (partial / path.name).open("w", encoding="utf-8") as output:
                for lines in chunks(text.read_lines(path)):
                    output.writelines(" ".join(pieces) + "\n" for pieces in processor.encode(lines, out_type=str))
    print(f"{output_dir}: {len(paths)} files")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="spm.model")
    parser.add_argument("--input-dir", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    args = parser.parse_args()
    encode(args.model, args.input_dir, args.output_dir)


if __name__ == "__main__":
    text.run(main)
