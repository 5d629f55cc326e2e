"""Line-aligned text: how its files are named, how they are read and checked, how they are written.

Between the steps text lies in one directory as ``{split}.{a}-{b}.{lang}``, one sentence a line, for
every pair of languages ``a-b``. Both directions share a pair's files unless a split has files of
its own for each (as WMT test sets do).
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

SPLITS = ("train", "valid", "test")


class TextError(Exception):
    """Something a user can put right: its message is the one line that the user sees."""


class Direction(NamedTuple):
    """A direction of translation, from ``source`` to ``target`` (language codes)."""

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source}-{self.target}"

    def reversed(self) -> Direction:
        return Direction(self.target, self.source)

    def shared_name(self) -> Direction:
        """The name of files that serve both directions: the languages in alphabetical order."""
        return Direction(*sorted(self))


def parse_directions(text: str) -> list[Direction]:
    """Read a list such as ``en-de,de-en``. Raises TextError for anything else."""
    directions = []
    for item in text.split(","):
        codes = item.split("-")
        if len(codes) != 2 or not all(codes) or codes[0] == codes[1]:
            raise TextError(f"--lang-pairs: '{item}' is no pair of languages; write it as in en-de,de-en")
        directions.append(Direction(*codes))
    return directions


def paths_of(directory: Path, split: str, name: Direction) -> list[Path]:
    """The files, source language first, that hold a pair's text under ``name``."""
    return [directory / f"{split}.{name}.{lang}" for lang in name]


def find_name(directory: Path, split: str, direction: Direction) -> Direction | None:
    """The name under which ``directory`` holds the text of ``direction``: itself, its reverse or none."""
    for name in (direction, direction.reversed()):
        if all(path.is_file() for path in paths_of(directory, split, name)):
            return name
    return None


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with white space reduced to single spaces.

    Raises TextError, naming file and line, for an empty line and for text that is not UTF-8.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = " ".join(line.decode("utf-8").removeprefix("\ufeff").split())
            except UnicodeDecodeError:
                raise TextError(f"{path}:{number}: not UTF-8; convert the file, for example with iconv") from None
            if not text:
                raise TextError(f"{path}:{number}: empty line; remove the line from all languages")
            yield text


def count_lines(path: Path) -> int:
    """How many lines a file has."""
    count = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            count += block.count(b"\n")
    return count


def read_aligned(paths: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of several files side by side.

    Raises TextError as ``read_lines`` does, and where one file has fewer lines than another.
    """
    number = 0
    for number, row in enumerate(zip_longest(*map(read_lines, paths)), 1):
        if None in row:
            short = paths[row.index(None)]
            long = paths[next(i for i, line in enumerate(row) if line is not None)]
            raise TextError(f"{short}:{number}: the file ends before line {number}, which {long} has; align the two")
        yield row
    if number == 0:
        raise TextError(f"{paths[0]}:1: the file is empty")


def write_aligned(directory: Path, split: str, name: Direction, rows: Iterable[tuple[str, ...]]) -> None:
    """Write rows of (source, target) to the two files of ``name`` and report how many there were."""
    count = 0
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("w", encoding="utf-8")) for path in paths_of(directory, split, name)]
        for row in rows:
            for file, line in zip(files, row):
                file.write(line + "\n")
            count += 1
    print(f"{split} {name}: {count} lines", flush=True)


def write_directions(
    directory: Path, split: str, directions: Iterable[Direction], langs: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Write rows that have a line of each of ``langs``, in this order, to the files of every pair, once for each."""
    for name in dict.fromkeys(direction.shared_name() for direction in directions):
        source, target = (langs.index(lang) for lang in name)
        write_aligned(directory, split, name, ((row[source], row[target]) for row in rows))


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Give a temporary directory beside ``path`` and rename it to ``path`` when all went well.

    Raises TextError where ``path`` exists already. Nothing is left behind on an error.
    """
    if path.exists():
        raise TextError(f"{path}: exists already; delete it or name another --output-dir")
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def run(main: Callable[[], None]) -> None:
    """Call ``main``; what goes wrong becomes one line on standard error and exit code 1."""
    try:
        main()
    except (TextError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(1)
