#!/usr/bin/env python3
"""Check your own line-aligned text and copy it to where the next steps read it.

INPUT_DIR holds, for each split (train, valid, test), either {split}.{src}-{tgt}.{lang} for every
pair of languages, or {split}.{lang} for text in which line N means the same in every language.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import text
from text import Direction, TextError


def locate(directory: Path, split: str, direction: Direction) -> tuple[Direction, list[Path]]:
    """Find the text of ``direction``: the name it goes by from here on, and its two files.

    Raises TextError naming the missing file.
    """
    name = text.find_name(directory, split, direction)
    if name is not None:
        return name, text.paths_of(directory, split, name)
    name = direction.shared_name()
    paths = [directory / f"{split}.{lang}" for lang in name]
    for path, alternative in zip(paths, text.paths_of(directory, split, name)):
        if not path.is_file():
            raise TextError(f"{path}: no such file, nor {alternative.name}; {direction} needs one of the two")
    return name, paths


def copy_checked(input_dir: Path, directions: list[Direction], output_dir: Path, lowercase: bool = False) -> None:
    """Copy all splits of ``directions`` to ``output_dir``, which must not exist; in lower case if asked to.

    Raises TextError for missing files, unequal line counts, empty lines and text that is not UTF-8.
    """
    with text.new_directory(output_dir) as partial:
        for split in text.SPLITS:
            files = dict(locate(input_dir, split, direction) for direction in directions)
            for name, paths in files.items():
                rows = text.read_aligned(paths)
                if lowercase:
                    rows = (tuple(map(str.lower, row)) for row in rows)
                text.write_aligned(partial, split, name, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input-dir", type=Path, required=True)
    parser.add_argument("--lang-pairs", required=True, help="directions to prepare, such as en-de,de-en")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--lowercase", action="store_true", help="turn all text into lower case")
    args = parser.parse_args()
    copy_checked(args.input_dir, text.parse_directions(args.lang_pairs), args.output_dir, args.lowercase)


if __name__ == "__main__":
    text.run(main)
