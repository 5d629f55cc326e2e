"""The user's own text as data."""

from pathlib import Path

import pytest

from tests.examples.commands import error_line, run_step

SENTENCES = {
    "en": ["one dog", "two dogs", "a cat"],
    "de": ["ein Hund", "zwei Hunde", "eine Katze"],
    "fr": ["un chien", "deux chiens", "un chat"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Text of three languages in which line N means the same in all of them."""
    directory = tmp_path / "mine"
    directory.mkdir()
    for split in ("train", "valid", "test"):
        for lang, lines in SENTENCES.items():
            (directory / f"{split}.{lang}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


def get_files(folder: Path, *flags: str):
    pairs = "en-de,de-en,en-fr,fr-en"
    return run_step(
        "get_files.py", "--input-dir", folder, "--lang-pairs", pairs, "--output-dir", folder.parent / "text", *flags
    )


def test_aligned_languages_become_one_pair_of_files_for_both_directions(folder: Path) -> None:
    assert get_files(folder).returncode == 0
    names = sorted(path.name for path in (folder.parent / "text").glob("train.*"))
    assert names == ["train.de-en.de", "train.de-en.en", "train.en-fr.en", "train.en-fr.fr"]
    assert (folder.parent / "text" / "train.de-en.de").read_text().splitlines() == SENTENCES["de"]


def test_text_becomes_lower_case_where_asked_to(folder: Path) -> None:
    assert get_files(folder, "--lowercase").returncode == 0
    assert (folder.parent / "text" / "test.de-en.de").read_text() == "ein hund\nzwei hunde\neine katze\n"


def test_files_of_a_pair_are_taken_before_files_of_a_language(folder: Path) -> None:
    (folder / "train.en-de.en").write_text("one sentence\n")
    (folder / "train.en-de.de").write_text("ein Satz\n")
    assert get_files(folder).returncode == 0
    assert (folder.parent / "text" / "train.en-de.de").read_text() == "ein Satz\n"
    assert not (folder.parent / "text" / "train.de-en.de").exists()


def test_each_direction_may_have_a_test_set_of_its_own(folder: Path) -> None:
    for name, english in (("en-de", "from English"), ("de-en", "from German")):
        (folder / f"test.{name}.en").write_text(english + "\n")
        (folder / f"test.{name}.de").write_text("ein Satz\n")
    assert get_files(folder).returncode == 0
    assert (folder.parent / "text" / "test.en-de.en").read_text() == "from English\n"
    assert (folder.parent / "text" / "test.de-en.en").read_text() == "from German\n"


def break_encoding(folder: Path) -> None:
    (folder / "valid.de").write_bytes("ein Hund\nein Löwe\neine Katze\n".encode("latin-1"))


def break_count(folder: Path) -> None:
    (folder / "valid.de").write_text("ein Hund\nzwei Hunde\n")


def empty_line(folder: Path) -> None:
    (folder / "valid.de").write_text("ein Hund\n\neine Katze\n")


def remove_language(folder: Path) -> None:
    (folder / "valid.de").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_encoding, "valid.de:2: not UTF-8"),
        (break_count, "valid.de:3: the file ends before line 3"),
        (empty_line, "valid.de:2: empty line"),
        (remove_language, "valid.de: no such file"),
    ],
)
def test_damaged_text_is_one_clear_line_and_writes_nothing(folder: Path, damage, message: str) -> None:
    damage(folder)
    assert message in error_line(get_files(folder))
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]


def test_text_that_is_there_already_is_not_overwritten(folder: Path) -> None:
    (folder.parent / "text").mkdir()
    assert "text: exists already" in error_line(get_files(folder))
    assert list((folder.parent / "text").iterdir()) == []


def test_wrong_usage_is_exit_code_2(folder: Path) -> None:
    assert run_step("get_files.py", "--input-dir", folder).returncode == 2
