"""Home Assistant's string tables as data, from a made-up package."""

import json
import zipfile
from pathlib import Path

import pytest

import get_homeassistant as ha
import text
from tests.examples.commands import error_line, run_step

ENGLISH = "Turn on the {name}"
GERMAN = "Schalte {name} ein"


def wheel(directory: Path, tables: dict[str, dict[str, object]]) -> Path:
    """A package with the tables of one component, by language."""
    path = directory / "homeassistant-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for lang, table in tables.items():
            archive.writestr(f"homeassistant/components/light/translations/{lang}.json", json.dumps(table))
        archive.writestr("homeassistant/components/light/manifest.json", "{}")
    return path


def test_strings_are_aligned_by_their_key(tmp_path: Path) -> None:
    tables = {
        "en": {"a": {"x": ENGLISH, "y": "Turn off the light"}, "b": "Not in the other table"},
        "de": {"a": {"y": "Schalte das Licht aus", "x": GERMAN}},
        "fr": {"a": {"x": "Allumez {name}"}},
    }
    strings = ha.read_strings(wheel(tmp_path, tables), ["en", "de"])
    assert ha.align(strings, max_words=60) == [(ENGLISH, GERMAN), ("Turn off the light", "Schalte das Licht aus")]


def test_rows_that_are_equal_in_all_languages_appear_once() -> None:
    strings = {"en": {"1": ENGLISH, "2": ENGLISH, "3": ENGLISH}, "de": {"1": GERMAN, "2": GERMAN, "3": "{name} an"}}
    assert ha.align(strings, max_words=60) == [(ENGLISH, GERMAN), (ENGLISH, "{name} an")]


@pytest.mark.parametrize(
    ("english", "german"),
    [
        ("Turn on", "Schalte ein"),
        ("Home Assistant Cloud", "Home Assistant Cloud"),
        (ENGLISH, ""),
        (ENGLISH, "Schalte {device} ein"),
        ("See [%key:common::x%] for more", "Siehe [%key:common::x%]"),
        ("First line\nsecond line", "Erste Zeile\nzweite Zeile"),
        ("This is <b>bold</b> text", "Das ist <b>fetter</b> Text"),
        ("Read [the manual](https://a.b)", "Lies [die Anleitung](https://a.b)"),
        ("{n, plural, one {# light} other {# lights}}", "{n, plural, one {# Lampe} other {# Lampen}}"),
        ("word " * 61, "Wort " * 61),
    ],
)
def test_strings_that_are_no_sentences_with_translations_are_left_out(english: str, german: str) -> None:
    assert not ha.is_translated((english, german), max_words=60)
    assert ha.is_translated((ENGLISH, GERMAN), max_words=60)


def test_no_english_test_string_is_in_training_whatever_its_case_digits_and_punctuation() -> None:
    variants = ["Set-up of zone {}", "set up of zone {}.", "SET UP OF ZONE {}!"]
    topics = ["".join(chr(97 + int(digit)) for digit in str(number)) for number in range(200)]
    rows = [(f"{topic} {v.format(n)}", f"{topic} {n}") for n, v in enumerate(variants) for topic in topics]
    splits = ha.split_rows(rows, held_out=50)
    seen = {split: {ha.letters(english) for english, _ in rows} for split, rows in splits.items()}
    assert not seen["test"] & seen["train"]
    assert not seen["test"] & seen["valid"]
    assert not seen["valid"] & seen["train"]
    assert len(splits["test"]) == len(splits["valid"]) == 50
    assert len(splits["train"]) == 100 * len(variants)


def test_other_rows_do_not_change_which_string_of_two_is_held_out() -> None:
    rows = [(f"string number {chr(97 + n)}", "x") for n in range(20)]
    few, many = ha.split_rows(rows[:10], held_out=2), ha.split_rows(rows, held_out=4)
    order = [row for split in ("test", "valid", "train") for row in few[split]]
    all_in_order = [row for split in ("test", "valid", "train") for row in many[split]]
    assert order == [row for row in all_in_order if row in order]


def test_every_pair_is_written_in_all_splits(tmp_path: Path) -> None:
    languages = {lang: {str(n): f"{lang} string {'a' * n}" for n in range(1, 10)} for lang in ("en", "de", "fr")}
    directions = text.parse_directions("en-de,de-en,fr-de")
    ha.write_pairs(wheel(tmp_path, languages), directions, max_words=60, held_out=2, output_dir=tmp_path / "text")
    names = {path.name for path in (tmp_path / "text").iterdir()}
    pairs = ("de-en.de", "de-en.en", "de-fr.de", "de-fr.fr")
    assert names == {f"{split}.{pair}" for split in text.SPLITS for pair in pairs}
    assert len((tmp_path / "text" / "train.de-fr.fr").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("pairs", "held_out", "message"),
    [
        ("en-de,de-en", 500, "--held-out 500: only 1 different strings"),
        ("en-xx", 1, "has no strings in 'xx'"),
        ("en_de", 1, "'en_de' is no pair of languages"),
    ],
)
def test_what_the_package_cannot_give_is_one_clear_line(tmp_path: Path, pairs: str, held_out: int, message: str):
    package = wheel(tmp_path, {"en": {"a": ENGLISH}, "de": {"a": GERMAN}})
    output = tmp_path / "text"
    args = ("--wheel", package, "--lang-pairs", pairs, "--held-out", held_out, "--output-dir", output)
    assert message in error_line(run_step("get_homeassistant.py", *args))
    assert list(tmp_path.iterdir()) == [package]


def test_a_damaged_package_is_one_clear_line(tmp_path: Path) -> None:
    package = tmp_path / "homeassistant.whl"
    package.write_text("cut short")
    args = ("--wheel", package, "--lang-pairs", "en-de", "--output-dir", tmp_path / "text")
    assert "homeassistant.whl: not a wheel" in error_line(run_step("get_homeassistant.py", *args))
