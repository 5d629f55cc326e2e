#!/usr/bin/env python3
"""Write the training text of a student, in pieces: the teacher's translations of the teacher's training text.

Where a translation is empty or repeats itself, up to four pieces four times in a row, the reference takes its place:
a student learns to loop from a few hundred such lines. Hardly a reference repeats itself so.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import text
from score import read_translations
from text import Direction, TextError

LOOP = re.compile(r"(?<!\S)((?:\S+ ){1,4}?)\1{3}")


def is_usable(translation: str) -> bool:
    """Whether a translation, in pieces with a space between each two, has any and does not loop."""
    return bool(translation) and not LOOP.search(translation + " ")


def student_rows(pieces: Path, translations: Path, direction: Direction) -> Iterator[tuple[str, str]]:
    """Yield what a student of a direction reads and what it learns to write, and report how often that is a reference.

    Raises TextError where the translations are not those of the training text, line by line.
    """
    name = text.find_name(pieces, "train", direction)
    if name is None:
        raise TextError(f"{pieces}: no training text for {direction}")
    rows = list(text.read_aligned([pieces / f"train.{name}.{lang}" for lang in direction]))
    path = translations / f"{direction}.txt"
    translated = read_translations(path)
    if len(translated) != len(rows):
        raise TextError(f"{path}: {len(translated)} lines, the training text has {len(rows)}; delete it and run again")
    usable = list(map(is_usable, translated))
    bad = usable.count(False)
    print(f"{direction}: {bad} of {len(rows)} translations loop or are empty; references take their place")
    for (source, reference), translation, good in zip(rows, translated, usable):
        yield source, translation if good else reference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces-dir", type=Path, required=True, help="the teacher's training text, in pieces")
    parser.add_argument("--translations-dir", type=Path, required=True, help="the teacher's, a file DIRECTION.txt each")
    parser.add_argument("--lang-pairs", required=True, help="directions to write, such as en-de,de-en")
    parser.add_argument("--output-dir", type=Path, required=True)
    args = parser.parse_args()
    with text.new_directory(args.output_dir) as partial:
        for direction in text.parse_directions(args.lang_pairs):
            rows = student_rows(args.pieces_dir, args.translations_dir, direction)
            text.write_aligned(partial, "train", direction, rows)


if __name__ == "__main__":
    text.run(main)
