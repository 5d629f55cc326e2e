#!/usr/bin/env python3
"""Get the paper's WMT data: training corpora with mtdata, validation and test sets with sacrebleu.

DOWNLOAD_DIR is left as the two tools fill it: mtdata/{src}-{tgt}/train-parts/{corpus}.{code} and .../tests/, and
sacrebleu/{set}/{set}.{src}-{tgt}.src and .ref. What is there is not fetched again, so an interrupted download goes
on; any other pair of files in a train-parts folder is taken as one more corpus. The SHA-256 of every file goes to
DOWNLOAD_DIR/SHA256SUMS, and files that have changed since are an error.

OUTPUT_DIR gets links to the files, as clean.py wants them: {split}.{src}-{tgt}/{corpus}.{lang}.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

import text
from text import Direction, TextError
from wmt import ENGLISH, LANGUAGES, Language

CHECKSUMS = "SHA256SUMS"
# Files of one corpus or test set by language.
Files = dict[str, Path]


def foreign(direction: Direction) -> str:
    """The language of a direction that is not English. Raises TextError where the paper has no data."""
    langs = set(direction) - {"en"}
    if len(langs) != 1 or not langs <= LANGUAGES.keys():
        raise TextError(f"--lang-pairs: no WMT data for {direction}; English goes with {','.join(LANGUAGES)}")
    return langs.pop()


def corpus_files(directory: Path, corpus: str, lang: str) -> Files:
    """The two files that mtdata makes of a corpus in one of its folders, train-parts or tests."""
    codes = {lang: LANGUAGES[lang].code, "en": ENGLISH}
    return {name: directory / f"{corpus}.{code}" for name, code in codes.items()}


def missing_corpora(output: Path, language: Language) -> dict[str, list[str]]:
    """What mtdata's output folder lacks of a language's corpora, by the flag that asks mtdata for them."""
    valid = [] if is_test_set(language.valid) else [language.valid]
    wanted = (("--train", "train-parts", language.corpora), ("--dev", "tests", valid))
    # mtdata marks a corpus that it has finished with such a file.
    missing = {
        flag: [corpus for corpus in corpora if not (output / folder / f".valid.{corpus}").exists()]
        for flag, folder, corpora in wanted
    }
    return {flag: corpora for flag, corpora in missing.items() if corpora}


def run_mtdata(download_dir: Path, lang: str, jobs: int) -> Path:
    """Let mtdata fetch what is missing of a language's corpora; returns its output folder."""
    language = LANGUAGES[lang]
    output = download_dir / "mtdata" / str(Direction(lang, "en").shared_name())
    missing = missing_corpora(output, language)
    if not missing:
        return output
    if importlib.util.find_spec("mtdata") is None:
        raise TextError('mtdata: not installed; run: pip install "taskmoe-plugin[wmt]"')
    command = [sys.executable, "-m", "mtdata", "get", "--langs", f"{language.code}-{ENGLISH}"]
    for flag, corpora in missing.items():
        command += [flag, *corpora]
    command += ["--n-jobs", str(jobs), "--out", str(output)]
    environment = {**os.environ, "MTDATA": str((download_dir / "mtdata_cache").resolve())}
    finished = subprocess.run(command, env=environment)
    left = [corpus for corpora in missing_corpora(output, language).values() for corpus in corpora]
    if finished.returncode != 0 or left:
        raise TextError(
            f"{output}: mtdata could not get {', '.join(left)} (see above); start again to go on, or to do without "
            f"a training corpus, touch {output}/train-parts/.valid.CORPUS first"
        )
    return output


def is_test_set(name: str) -> bool:
    """Whether a name is one of sacrebleu's, not mtdata's."""
    return name.startswith("wmt")


def run_sacrebleu(download_dir: Path, name: str, direction: Direction) -> Files:
    """Let sacrebleu fetch a test set unless it is there; returns its files."""
    directory = download_dir / "sacrebleu"
    stem = directory / name / f"{name.replace('/', '_')}.{direction}"
    files = dict(zip(direction, (Path(f"{stem}.src"), Path(f"{stem}.ref"))))
    if not all(path.is_file() for path in files.values()):
        command = [sys.executable, "-m", "sacrebleu", "-t", name, "-l", str(direction), "--echo", "src"]
        environment = {**os.environ, "SACREBLEU": str(directory.resolve())}
        if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode != 0:
            raise TextError(f"{directory}: sacrebleu could not get {name} {direction} (see above)")
    return files


def training_files(directory: Path, lang: str) -> dict[str, Files]:
    """Every corpus in a train-parts folder, those that mtdata did not put there included."""
    names = sorted(path.name.removesuffix(f".{ENGLISH}") for path in directory.glob(f"*.{ENGLISH}"))
    return {name: corpus_files(directory, name, lang) for name in names}


def get_language(download_dir: Path, lang: str, directions: list[Direction], jobs: int) -> dict[str, dict[str, Files]]:
    """Fetch a language's data. Returns files by ``{split}.{src}-{tgt}`` and corpus."""
    language: Language = LANGUAGES[lang]
    pair = Direction(lang, "en")
    output = run_mtdata(download_dir, lang, jobs)
    if is_test_set(language.valid):
        valid = run_sacrebleu(download_dir, language.valid, pair)
    else:
        valid = corpus_files(output / "tests", language.valid, lang)
    found = {
        f"train.{pair.shared_name()}": training_files(output / "train-parts", lang),
        f"valid.{pair.shared_name()}": {language.valid: valid},
    }
    for direction in directions:
        found[f"test.{direction}"] = {language.test: run_sacrebleu(download_dir, language.test, direction)}
    return found


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_checksums(path: Path) -> dict[str, str]:
    """Read a file that sha256sum wrote: digest by file name."""
    rows = (line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return {name: digest for digest, name in rows}


def check(download_dir: Path, paths: list[Path], expected: Path) -> None:
    """Write DOWNLOAD_DIR/SHA256SUMS. Raises TextError for a file that differs from ``expected``, if that exists."""
    known = read_checksums(expected) if expected.exists() else {}
    lines = []
    for path in tqdm(sorted(set(paths)), desc="checksums", unit="file"):
        name = path.relative_to(download_dir).as_posix()
        digest = sha256(path)
        if known.get(name, digest) != digest:
            raise TextError(f"{path}: is not the file that {expected} has the checksum of; delete it to get it again")
        lines.append(f"{digest}  {name}\n")
    partial = download_dir / f"{CHECKSUMS}.partial"
    partial.write_text("".join(lines), encoding="utf-8")
    partial.rename(download_dir / CHECKSUMS)


def get(download_dir: Path, directions: list[Direction], output_dir: Path, expected: Path, jobs: int) -> None:
    """Fetch the data of all directions and link it from ``output_dir``, which must not exist."""
    by_lang: dict[str, list[Direction]] = {}
    for direction in directions:
        by_lang.setdefault(foreign(direction), []).append(direction)
    found: dict[str, dict[str, Files]] = {}
    for lang, needed in tqdm(by_lang.items(), desc="languages", unit="language"):
        found |= get_language(download_dir, lang, needed, jobs)
    paths = [path for corpora in found.values() for files in corpora.values() for path in files.values()]
    for path in paths:
        if not path.is_file():
            raise TextError(f"{path}: no such file; the other side of the corpus is there, so put it beside it")
    check(download_dir, paths, expected)
    with text.new_directory(output_dir) as partial:
        for folder, corpora in found.items():
            (partial / folder).mkdir()
            for corpus, files in corpora.items():
                for lang, path in files.items():
                    link = partial / folder / f"{corpus.replace('/', '_')}.{lang}"
                    link.symlink_to(os.path.relpath(path.resolve(), link.parent.resolve()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lang-pairs", required=True, help="directions to prepare, such as en-de,de-en")
    parser.add_argument("--download-dir", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=4, help="corpora that mtdata fetches at a time (default: 4)")
    parser.add_argument("--checksums", type=Path, help="compare with these (default: DOWNLOAD_DIR/SHA256SUMS)")
    args = parser.parse_args()
    directions = text.parse_directions(args.lang_pairs)
    if args.checksums is not None and not args.checksums.is_file():
        raise TextError(f"--checksums {args.checksums}: no such file")
    expected = args.checksums or args.download_dir / CHECKSUMS
    get(args.download_dir, directions, args.output_dir, expected, args.jobs)


if __name__ == "__main__":
    text.run(main)
