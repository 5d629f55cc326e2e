"""What cleaning drops, and what it says of it."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.examples.commands import error_line, run_step

GOOD = [
    ("Psi hlasitě štěkají na ulici a děti utíkají domů.", "Dogs bark loudly in the street and children run home."),
    ("Dnes večer půjdeme společně do divadla.", "Tonight we will go to the theatre together."),
]
HELD_OUT = [("Zítra bude pršet po celé zemi.", "Tomorrow it will rain in the whole country.")]


def write(folder: Path, corpus: str, rows: list[tuple[str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for lang, lines in zip(("cs", "en"), zip(*rows)):
        (folder / f"{corpus}.{lang}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "corpora" / "train.cs-en", "first", GOOD)
    for split in ("valid.cs-en", "test.cs-en", "test.en-cs"):
        write(tmp_path / "corpora" / split, "news", HELD_OUT)
    return tmp_path


def run(folder: Path, *more: object) -> subprocess.CompletedProcess[str]:
    directories = ("--input-dir", folder / "corpora", "--output-dir", folder / "text")
    return run_step("clean.py", *directories, "--lang-pairs", "cs-en,en-cs", *more)


def kept(folder: Path) -> list[tuple[str, ...]]:
    columns = [(folder / "text" / f"train.cs-en.{lang}").read_text().splitlines() for lang in ("cs", "en")]
    return list(zip(*columns, strict=True))


def dropped(folder: Path, corpus: str) -> dict[str, int]:
    """For each reason that occurred, how many lines of a corpus were dropped."""
    row = json.loads((folder / "text" / "cleaning.json").read_text())["cs-en"][corpus]
    assert row["read"] == sum(count for key, count in row.items() if key != "read")
    return {key: count for key, count in row.items() if count and key not in ("read", "kept")}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ((" \u00a0", "Nothing."), "empty"),
        (("Slovo " * 30, "Word " * 30), "too long"),
        (("Ano.", "Yes, but only if the weather is fine tomorrow."), "ratio"),
        ((HELD_OUT[0][0], "Tomorrow is a rainy day."), "held out"),
        ((GOOD[0][0], GOOD[0][1]), "duplicate"),
        ((f"  {GOOD[0][0]}", f"{GOOD[0][1]}\t"), "duplicate"),
    ],
)
def test_bad_lines_are_dropped_and_counted(folder: Path, bad: tuple[str, str], reason: str) -> None:
    write(folder / "corpora" / "train.cs-en", "second", [bad])
    finished = run(folder, "--max-characters", "100")
    assert finished.returncode == 0, finished.stderr
    assert dropped(folder, "first") == {}
    assert dropped(folder, "second") == {reason: 1}
    assert kept(folder) == GOOD


def test_lines_in_another_encoding_are_dropped_on_both_sides(folder: Path) -> None:
    for lang, line in (("cs", "žluťoučký kůň\nkůň\n".encode("latin2")), ("en", b"yellow horse\na horse\n")):
        (folder / "corpora" / "train.cs-en" / f"second.{lang}").write_bytes(line)
    run(folder)
    assert dropped(folder, "second") == {"not UTF-8": 2}
    assert kept(folder) == GOOD


def test_other_languages_are_dropped_only_when_asked_for(folder: Path) -> None:
    german = ("Morgen fahren wir mit dem Zug nach Berlin.", "Tomorrow we will take the train to Berlin.")
    write(folder / "corpora" / "train.cs-en", "second", [german])
    run(folder)
    assert kept(folder) == [*GOOD, german]
    (folder / "text").rename(folder / "unidentified")
    run(folder, "--identify-languages", "0.5")
    assert dropped(folder, "second") == {"language": 1}
    assert kept(folder) == GOOD


def test_held_out_text_stays_whole_in_every_direction(folder: Path) -> None:
    odd = [*HELD_OUT, *HELD_OUT, ("Ne.", "Not in a hundred years, whatever they may tell you.")]
    write(folder / "corpora" / "test.en-cs", "news", odd)
    run(folder)
    assert (folder / "text" / "test.en-cs.en").read_text().splitlines() == [english for _, english in odd]
    assert (folder / "text" / "test.cs-en.en").read_text().splitlines() == [HELD_OUT[0][1]]


def test_the_report_is_a_table_too(folder: Path) -> None:
    lines = run(folder, "--workers", "2").stdout.splitlines()
    assert lines[-2].split() == ["cs-en", "first", "2", "2", *["0"] * 7]
    assert lines[-1].split() == ["total", "2", "2", *["0"] * 7]


def test_a_corpus_whose_sides_differ_in_length_is_named(folder: Path) -> None:
    (folder / "corpora" / "train.cs-en" / "first.cs").write_text("jedna\n")
    line = run(folder).stderr.splitlines()[-1]
    assert line == (
        f"clean.py: error: {folder}/corpora/train.cs-en/first.cs:2: the file ends before line 2, "
        "which the other side has"
    )
    assert [path.name for path in folder.iterdir()] == ["corpora"]


def test_a_pair_without_corpora_is_named(folder: Path) -> None:
    args = ("--input-dir", folder / "corpora", "--output-dir", folder / "text", "--lang-pairs", "de-en")
    assert "valid.de-en: no files {corpus}.de" in error_line(run_step("clean.py", *args))
