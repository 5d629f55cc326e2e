"""The full model beside its subnets."""

import json
from pathlib import Path

import pytest

from tests.examples.commands import error_line, run_step

ENGLISH = ["the dog sleeps on the mat", "the cat sits on the big chair"]
GERMAN = ["der Hund schläft auf der Matte", "die Katze sitzt auf dem Stuhl"]
FOLDERS = {"translations": ENGLISH, "subnet_translations": ENGLISH, "ctranslate2_translations": [ENGLISH[0], "a dog"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run with one direction, whose models are files of 4, 2 and 1 MB."""

    def write(name: str, content: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")

    write("text/test.de-en.en", "\n".join(ENGLISH) + "\n")
    write("text/test.de-en.de", "\n".join(GERMAN) + "\n")
    for speed, (name, lines) in enumerate(FOLDERS.items(), 1):
        write(f"{name}/de-en.txt", "\n".join(lines) + "\n")
        write(f"{name}/de-en.log", f"Translated 2 sentences (15 tokens) in 1.0s ({speed}00.00 tokens/s)\n")
    write("subnets/de-en/subnet.json", json.dumps({"full_model": {"bytes": 4_000_000}}))
    write("subnets/de-en/model.pt", "x" * 2_000_000)
    write("ctranslate2/de-en/model.bin", "x" * 1_000_000)
    return tmp_path


def compare(folder: Path, *more: str):
    output = folder / "comparison.json"
    return run_step("compare.py", "--work-dir", folder, "--lang-pairs", "de-en", "--output", output, *more)


def test_bleu_size_and_speed_of_the_three_stand_side_by_side(folder: Path) -> None:
    lines = compare(folder).stdout.splitlines()
    assert lines[0].split() == ["BLEU", "MB", "tokens/s"]
    assert lines[1].split() == ["direction", *["full", "subnet", "int8"] * 3]
    direction, full, subnet, int8, *rest = lines[2].split()
    assert (direction, full, subnet) == ("de-en", "100.00", "100.00")
    assert 0 < float(int8) < 100
    assert rest == ["4.0", "2.0", "1.0", "100", "200", "300"]
    assert lines[3].split() == ["average", full, subnet, int8, *rest]
    row = json.loads((folder / "comparison.json").read_text())["de-en"]
    assert row["int8"]["bytes"] == 1_000_000
    assert row["full"]["tokens_per_second"] == 100


def test_bleu_is_counted_with_the_tokenizer_asked_for(folder: Path) -> None:
    words, characters = (compare(folder, "--tokenize", name).stdout.splitlines()[2].split() for name in ("13a", "char"))
    assert compare(folder).stdout.splitlines()[2].split() == words
    assert words[1:3] == characters[1:3] == ["100.00", "100.00"]
    assert words[3] != characters[3]


def test_a_translation_that_lost_a_sentence_is_an_error(folder: Path) -> None:
    (folder / "subnet_translations" / "de-en.txt").write_text(ENGLISH[0] + "\n")
    assert "subnet_translations/de-en.txt: 1 translations, but 2 lines" in error_line(compare(folder))
    assert not (folder / "comparison.json").exists()


def test_a_log_without_a_speed_is_named(folder: Path) -> None:
    (folder / "translations" / "de-en.log").write_text("interrupted\n")
    assert "translations/de-en.log: says nothing of speed" in error_line(compare(folder))
