#!/usr/bin/env python3
"""Get the help of LibreOffice in many languages as line-aligned text.

It comes in Debian's packages libreoffice-help-en-us, -de and so on (licence: MPL-2.0), as pages of HTML whose
paragraphs have ids that are the same in all languages. They are downloaded with apt-get and read, not installed;
--deb-dir reads copies instead, on any machine that has dpkg-deb. pt is the Portuguese of Brazil. Other versions of
LibreOffice give other text: docs/comparison is of 25.2.3, that of Debian 13.

A paragraph becomes as many lines as it has sentences, if these are as many in every language, else one line. A line
is kept where its English has 3 to 60 words, is mostly letters and has not been met before, and no other language
repeats it. Validation and test text are the pages that libreoffice_help_pages.json names: no page and no English line
is in two splits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

import text
from text import Direction, TextError

VERSION = "25.2.3"
# Languages whose package has another name.
PACKAGES = {"en": "en-us", "pt": "pt-br"}
PAGE = re.compile(r"\./usr/share/libreoffice/help/[^/]+/text/(.+\.html)")
HELD_OUT = Path(__file__).with_name("libreoffice_help_pages.json")
MIN_WORDS, MAX_WORDS = 3, 60
LETTERS = 0.75  # the smallest share of letters and spaces in a line
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=(\w))")
BLOCKS = ("p", "h1", "h2", "h3", "h4", "h5", "h6")

Paragraphs = dict[tuple[str, str], str]


class Page(HTMLParser):
    """The paragraphs and headings of a page by their ids, in ``paragraphs``.

    What is embedded from other pages is left out, and so are lines of code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: dict[str, str] = {}
        self._open: tuple[str, str] | None = None  # tag and id of the paragraph that is being read
        self._parts: list[str] = []
        self._divisions: list[bool] = []  # of those around: whether they are embedded

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        kinds = (found.get("class") or "").split()
        if tag == "div":
            self._divisions.append("embedded" in kinds)
        elif tag == "br":
            self._parts.append(" ")
        elif tag in BLOCKS and not any(self._divisions) and "code" not in kinds:
            name = found.get("id") or ""
            if name.startswith(("par_id", "hd_id")):
                self._open, self._parts = (tag, name), []

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self._divisions:
            self._divisions.pop()
        elif self._open and tag == self._open[0]:
            self.paragraphs.setdefault(self._open[1], " ".join("".join(self._parts).split()))
            self._open = None

    def handle_data(self, data: str) -> None:
        self._parts.append(data)


def package_of(lang: str) -> str:
    """The name of a language's package."""
    return f"libreoffice-help-{PACKAGES.get(lang, lang)}"


def find_package(directory: Path, lang: str) -> Path | None:
    """A language's package in a directory, if it is there. Raises TextError where there are several."""
    found = sorted(directory.glob(f"{package_of(lang)}_*.deb"))
    if len(found) > 1:
        raise TextError(f"{directory}: {' and '.join(path.name for path in found)}; keep one of them")
    return found[0] if found else None


def download(directory: Path, langs: list[str]) -> None:
    """Download to ``directory`` the packages that it lacks. apt-get checks that they are the distribution's."""
    directory.mkdir(parents=True, exist_ok=True)
    missing = [package_of(lang) for lang in langs if find_package(directory, lang) is None]
    # Each in a command of its own: what an interruption leaves is whole, but for the package that was being fetched.
    for number, package in enumerate(missing, 1):
        print(f"downloading {package} ({number} of {len(missing)})", flush=True)
        try:
            finished = subprocess.run(["apt-get", "-qq", "download", package], cwd=directory)
        except FileNotFoundError:
            raise TextError(
                "apt-get: not found; get the packages elsewhere and name their directory with --deb-dir"
            ) from None
        if finished.returncode != 0:
            raise TextError(f"{package}: apt-get could not download it (see above); name copies with --deb-dir")


def read_package(path: Path) -> Paragraphs:
    """Read the paragraphs of a package by page and id. Raises TextError for a file that is no such package."""
    try:
        process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
    except FileNotFoundError:
        raise TextError("dpkg-deb: not found; install dpkg, which reads Debian's packages") from None
    assert process.stdout is not None
    found: Paragraphs = {}
    with process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    match = PAGE.fullmatch(member.name)
                    file = archive.extractfile(member) if match else None
                    if match and file:
                        page = Page()
                        page.feed(file.read().decode("utf-8"))
                        found.update({(match[1], name): line for name, line in page.paragraphs.items()})
        except (tarfile.TarError, UnicodeDecodeError):
            found = {}
    if process.returncode != 0 or not found:
        raise TextError(f"{path}: not a whole package of LibreOffice's help; delete it, so that it is downloaded again")
    return found


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph: they end where a capital letter follows a full stop and a space."""
    starts = [0, *(match.end() for match in SENTENCE_END.finditer(paragraph) if match[1].isupper())]
    return [paragraph[start:end].strip() for start, end in zip(starts, [*starts[1:], len(paragraph)])]


def lines_of(paragraph: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The lines that a paragraph, given in all languages, becomes."""
    split = [sentences(each) for each in paragraph]
    yield from zip(*split) if len(set(map(len, split))) == 1 else [tuple(paragraph)]


def is_translated(row: tuple[str, ...]) -> bool:
    """Whether a row, English first, holds translations to learn from."""
    english = row[0]
    return (
        MIN_WORDS <= len(english.split()) <= MAX_WORDS
        and sum(char.isalpha() or char.isspace() for char in english) >= LETTERS * len(english)
        and all(row)
        and english not in row[1:]
    )


def align(languages: Sequence[Paragraphs], held_out: dict[str, list[str]]) -> dict[str, list[tuple[str, ...]]]:
    """The rows of each split, of all languages, the first of which is English.

    Pages are read in the order of their names, those that are held out first; of rows with the same English, the first
    is kept.
    """
    split_of = {page: split for split, pages in held_out.items() for page in pages}
    rows: dict[str, list[tuple[str, ...]]] = {split: [] for split in text.SPLITS}
    seen: set[str] = set()
    for key in sorted(languages[0], key=lambda key: (key[0] not in split_of, key)):
        for row in lines_of([paragraphs.get(key, "") for paragraphs in languages]):
            if row[0] not in seen and is_translated(row):
                seen.add(row[0])
                rows[split_of.get(key[0], "train")].append(row)
    return rows


def read_languages(directory: Path, langs: Iterable[str]) -> list[Paragraphs]:
    """Read the packages of all languages, and say which they are."""
    found = []
    for lang in langs:
        path = find_package(directory, lang)
        if path is None:
            raise TextError(f"{directory}: no {package_of(lang)}_*.deb for '{lang}'")
        found.append(read_package(path))
        print(f"{path.name}: {len(found[-1])} paragraphs, SHA-256 {_sha256(path)}", flush=True)
        if VERSION not in path.name:
            print(f"note: {path.name} is not version {VERSION}, which docs/comparison was made with")
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_pairs(directory: Path, directions: list[Direction], output_dir: Path, held_out: dict[str, list[str]]) -> None:
    """Write the help in a directory's packages as train, valid and test text of every direction."""
    langs = ["en", *sorted({lang for direction in directions for lang in direction} - {"en"})]
    with text.new_directory(output_dir) as partial:
        for split, rows in align(read_languages(directory, langs), held_out).items():
            if not rows:
                raise TextError(f"{directory}: nothing for {split}; these packages lack the pages that are kept for it")
            text.write_directions(partial, split, directions, langs, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lang-pairs", required=True, help="directions to prepare, such as en-de,de-en")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--download-dir", type=Path, default=Path("download"), help="where apt-get puts the packages")
    parser.add_argument("--deb-dir", type=Path, help="use the packages in this directory; download nothing")
    args = parser.parse_args()
    directions = text.parse_directions(args.lang_pairs)
    if args.deb_dir is None:
        download(args.download_dir, ["en", *sorted({lang for each in directions for lang in each} - {"en"})])
    held_out = json.loads(HELD_OUT.read_text(encoding="utf-8"))
    write_pairs(args.deb_dir or args.download_dir, directions, args.output_dir, held_out)


if __name__ == "__main__":
    text.run(main)
