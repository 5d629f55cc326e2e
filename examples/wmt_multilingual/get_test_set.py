#!/usr/bin/env python3
"""Get one more test set: any of sacrebleu's, such as wmt22, by that name, or FLORES-200's devtest as flores200.

OUTPUT_DIR gets test.{src}-{tgt}.{lang} for each of the directions that the set has, and a file with their names,
directions. DOWNLOAD_DIR keeps what sacrebleu and, for FLORES, mtdata have fetched.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import text
from text import Direction, TextError
from wmt import ENGLISH, LANGUAGES

FLORES = "flores200"
# Languages that mtdata gives FLORES's own names.
FLORES_CODES = {"zh": "zho_Hans", "lv": "lvs_Latn"}
Files = tuple[Path, Path]


def get_sacrebleu(name: str, directions: list[Direction], download_dir: Path) -> dict[Direction, Files]:
    """Source and reference files of a test set of sacrebleu's, in the directions that it has."""
    # sacrebleu reads this when it is imported.
    os.environ["SACREBLEU"] = str((download_dir / "sacrebleu").resolve())
    from sacrebleu.dataset import DATASETS

    if name not in DATASETS:
        raise TextError(f"--name {name}: not a test set of sacrebleu (see sacrebleu --list), nor {FLORES}")
    # Its methods have no types.
    dataset: Any = DATASETS[name]
    found = {}
    for direction in directions:
        pair = str(direction)
        if pair not in dataset.langpairs:
            continue
        try:
            source, (reference, *_) = dataset.get_source_file(pair), dataset.get_reference_files(pair)
        except OSError as error:
            raise TextError(f"{download_dir}: sacrebleu could not get {name} {pair} ({error})") from error
        found[direction] = Path(source), Path(reference)
    return found


def get_flores(directions: list[Direction], download_dir: Path) -> dict[Direction, Files]:
    """Source and reference files of FLORES-200's devtest, in the directions between English and another language."""
    found = {}
    for direction in directions:
        langs = {lang: FLORES_CODES.get(lang, LANGUAGES[lang].code) for lang in direction if lang in LANGUAGES}
        if len(langs) == 1 and "en" in direction:
            (code,) = langs.values()
            files = run_mtdata(download_dir, code)
            found[direction] = tuple(files[langs.get(lang, ENGLISH)] for lang in direction)
    return found  # type: ignore[return-value]


def run_mtdata(download_dir: Path, code: str) -> dict[str, Path]:
    """Let mtdata fetch FLORES with a language unless it is there; returns its files by mtdata's codes."""
    corpus = f"Flores-{FLORES}_devtest-1-{'-'.join(sorted((code, ENGLISH)))}"
    output = download_dir / "mtdata" / FLORES / code
    files = {each: output / "tests" / f"{corpus}.{each}" for each in (code, ENGLISH)}
    if not all(path.is_file() for path in files.values()):
        if importlib.util.find_spec("mtdata") is None:
            raise TextError('mtdata: not installed; run: pip install "taskmoe-plugin[wmt]"')
        command = [sys.executable, "-m", "mtdata", "get", "--langs", f"{code}-{ENGLISH}", "--test", corpus]
        environment = {**os.environ, "MTDATA": str((download_dir / "mtdata_cache").resolve())}
        finished = subprocess.run([*command, "--out", str(output)], env=environment)
        if finished.returncode != 0 or not all(path.is_file() for path in files.values()):
            raise TextError(f"{output}: mtdata could not get {corpus} (see above)")
    return files


def rows(files: Files) -> Iterator[tuple[str, ...]]:
    """The sentences with their references, without those that have none."""
    lines = (path.read_text(encoding="utf-8").split("\n")[:-1] for path in files)
    for row in zip(*lines, strict=True):
        cleaned = tuple(" ".join(each.split()) for each in row)
        if all(cleaned):
            yield cleaned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help=f"the test set, such as wmt22 or {FLORES}")
    parser.add_argument("--lang-pairs", required=True, help="directions to get, such as en-de,de-en")
    parser.add_argument("--download-dir", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    args = parser.parse_args()
    directions = text.parse_directions(args.lang_pairs)
    if args.name == FLORES:
        found = get_flores(directions, args.download_dir)
    else:
        found = get_sacrebleu(args.name, directions, args.download_dir)
    if not found:
        raise TextError(f"--name {args.name}: has none of the directions {args.lang_pairs}")
    with text.new_directory(args.output_dir) as partial:
        for direction, files in found.items():
            text.write_aligned(partial, "test", direction, rows(files))
        (partial / "directions").write_text(",".join(map(str, found)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    text.run(main)
