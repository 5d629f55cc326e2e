#!/usr/bin/env python3
"""Get the translations of the Home Assistant user interface as line-aligned text.

They come in the Python package homeassistant (licence: Apache-2.0), as one table of strings per
component and language. The package is downloaded with pip and read, not installed. Strings are
aligned by their key, and kept where every language has a translation of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import text
from text import Direction, TextError

PACKAGE = "homeassistant==2026.2.3"
TABLE = re.compile(r"homeassistant/components/([^/]+)/translations/([^/]+)\.json")
# References to other strings, line breaks, HTML, links and plural forms: they are not sentences to translate.
MARKUP = re.compile(r"\[%key:|\n|<\w|</|\]\(|://|\{[^{}]*,")
PLACEHOLDER = re.compile(r"\{[^{}]*\}")
MIN_WORDS = 3


def download(directory: Path) -> Path:
    """Download the package into ``directory``, unless it is there, and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.14", "--dest", str(directory)]
    if subprocess.run([sys.executable, "-m", "pip", "download", *options, PACKAGE]).returncode != 0:
        raise TextError(f"{PACKAGE}: pip could not download it (see above); name a copy of the wheel with --wheel")
    return next(directory.glob("homeassistant-*.whl"))


def flatten(table: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield key and string of a nested table."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}/{key}")
        elif isinstance(value, str):
            yield f"{prefix}/{key}", value


def read_strings(wheel: Path, langs: list[str]) -> dict[str, dict[str, str]]:
    """Read the strings of each language by key. Raises TextError for a language without any."""
    strings: dict[str, dict[str, str]] = {lang: {} for lang in langs}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                match = TABLE.fullmatch(name)
                if match and match[2] in strings:
                    strings[match[2]].update(flatten(json.loads(archive.read(name)), match[1]))
    except zipfile.BadZipFile:
        raise TextError(f"{wheel}: not a wheel; delete it, so that it is downloaded again") from None
    for lang in langs:
        if not strings[lang]:
            raise TextError(f"--lang-pairs: {wheel.name} has no strings in '{lang}'")
    return strings


def is_translated(row: tuple[str, ...], max_words: int) -> bool:
    """Whether a row, English first, holds translations to learn from."""
    english = row[0]
    return (
        MIN_WORDS <= len(english.split()) <= max_words
        and all(line.strip() for line in row)
        and all(other != english for other in row[1:])
        and not any(MARKUP.search(line) for line in row)
        and len({tuple(sorted(PLACEHOLDER.findall(line))) for line in row}) == 1
    )


def align(strings: dict[str, dict[str, str]], max_words: int) -> list[tuple[str, ...]]:
    """Align the strings of all languages, the first of which is English, without duplicate rows."""
    rows: dict[tuple[str, ...], None] = {}
    for key in next(iter(strings.values())):
        raw = tuple(table.get(key, "") for table in strings.values())
        row = tuple(" ".join(line.split()) for line in raw)
        if is_translated(raw, max_words):
            rows[row] = None
    return list(rows)


def letters(line: str) -> str:
    """What two strings are compared by: their letters, without case, digits, punctuation and spaces."""
    return "".join(char for char in line.casefold() if char.isalpha())


def split_rows(rows: Iterable[tuple[str, ...]], held_out: int) -> dict[str, list[tuple[str, ...]]]:
    """Split rows so that strings with the same English letters never lie in two splits.

    valid and test get ``held_out`` rows each, all different in English. Which these are depends on
    the strings alone (a hash of their letters), so data sets with other languages hold out the same.
    """
    groups: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
        groups.setdefault(letters(row[0]), []).append(row)
    order = sorted(groups, key=lambda key: hashlib.sha256(key.encode()).digest())
    if len(order) <= 2 * held_out:
        raise TextError(f"--held-out {held_out}: only {len(order)} different strings; hold out fewer")
    test, valid, train = order[:held_out], order[held_out : 2 * held_out], order[2 * held_out :]
    return {
        "train": [row for key in train for row in groups[key]],
        "valid": [groups[key][0] for key in valid],
        "test": [groups[key][0] for key in test],
    }


def write_pairs(wheel: Path, directions: list[Direction], max_words: int, held_out: int, output_dir: Path) -> None:
    """Write the strings of the wheel as train, valid and test text of every direction."""
    langs = ["en", *sorted({lang for direction in directions for lang in direction} - {"en"})]
    splits = split_rows(align(read_strings(wheel, langs), max_words), held_out)
    with text.new_directory(output_dir) as partial:
        for split, rows in splits.items():
            text.write_directions(partial, split, directions, langs, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lang-pairs", required=True, help="directions to prepare, such as en-de,de-en")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--download-dir", type=Path, default=Path("download"), help="where pip puts the package")
    parser.add_argument("--wheel", type=Path, help="use this copy of the package; download nothing")
    parser.add_argument("--max-words", type=int, default=60, help="words of the longest English string (default: 60)")
    parser.add_argument("--held-out", type=int, default=500, help="rows of valid and of test (default: 500)")
    args = parser.parse_args()
    directions = text.parse_directions(args.lang_pairs)
    wheel = args.wheel or download(args.download_dir)
    write_pairs(wheel, directions, args.max_words, args.held_out, args.output_dir)


if __name__ == "__main__":
    text.run(main)
