"""Scores over whole test sets."""

import json
from pathlib import Path

import pytest

from tests.examples.commands import error_line, run_step

ENGLISH = ["the dog sleeps on the mat", "the cat sits on the big chair", "the bird sings in the tree"]
GERMAN = ["der Hund schläft auf der Matte", "die Katze sitzt auf dem Stuhl", "der Vogel singt im großen Baum"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for directory in ("text", "translations"):
        (tmp_path / directory).mkdir()
    (tmp_path / "text" / "test.de-en.en").write_text("\n".join(ENGLISH) + "\n")
    (tmp_path / "text" / "test.de-en.de").write_text("\n".join(GERMAN) + "\n")
    (tmp_path / "translations" / "de-en.txt").write_text("\n".join(ENGLISH) + "\n")
    (tmp_path / "translations" / "en-de.txt").write_text("\n" * len(GERMAN))
    return tmp_path


def score(folder: Path, *more: object, pairs: str = "en-de,de-en"):
    directories = ("--translations-dir", folder / "translations", "--text-dir", folder / "text")
    return run_step("score.py", *directories, "--lang-pairs", pairs, "--output", folder / "scores.json", *more)


def test_every_direction_and_the_average_are_reported(folder: Path) -> None:
    finished = score(folder)
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["directions"]["de-en"]["bleu"] == pytest.approx(100)
    assert scores["directions"]["de-en"]["chrf"] == pytest.approx(100)
    assert scores["directions"]["en-de"]["bleu"] == 0
    assert scores["average"] == pytest.approx({"bleu": 50, "chrf": 50, "length_ratio": 0.5})
    assert {each["sentences"] for each in scores["directions"].values()} == {3}
    assert "tok:13a" in scores["directions"]["de-en"]["bleu_signature"]
    assert [line.split() for line in finished.stdout.splitlines()] == [
        ["direction", "sentences", "BLEU", "chrF", "ratio"],
        ["en-de", "3", "0.0", "0.0", "0.00"],
        ["de-en", "3", "100.0", "100.0", "1.00"],
        ["average", "50.0", "50.0", "0.50"],
    ]


def test_a_lost_sentence_is_an_error_not_a_score(folder: Path) -> None:
    (folder / "translations" / "de-en.txt").write_text("\n".join(ENGLISH[:2]) + "\n")
    assert "de-en.txt: 2 translations, but 3 lines" in error_line(score(folder))
    assert not (folder / "scores.json").exists()


def test_a_direction_without_translations_is_named(folder: Path) -> None:
    (folder / "translations" / "en-de.txt").unlink()
    assert "en-de.txt: no such file" in error_line(score(folder))


def test_groups_of_directions_have_averages_of_their_own(folder: Path) -> None:
    groups = ("--group", "into-english=*-en", "--group", "german=de-*,*-de", "--group", "french=*-fr")
    lines = [line.split() for line in score(folder, *groups).stdout.splitlines()]
    assert lines[-3:] == [
        ["into-english", "100.0", "100.0", "1.00"],
        ["german", "50.0", "50.0", "0.50"],
        ["average", "50.0", "50.0", "0.50"],
    ]
    averages = json.loads((folder / "scores.json").read_text())["groups"]
    assert averages["german"] == pytest.approx({"bleu": 50, "chrf": 50, "length_ratio": 0.5})


def test_the_tokenizer_asked_for_gives_way_to_that_of_the_language(folder: Path) -> None:
    chinese = ["狗在垫子上睡觉", "猫坐在大椅子上", "鸟在树上唱歌"]
    for name in ("text/test.en-zh.zh", "translations/en-zh.txt"):
        (folder / name).write_text("\n".join(chinese) + "\n")
    (folder / "text" / "test.en-zh.en").write_text("\n".join(ENGLISH) + "\n")
    assert score(folder, "--tokenize", "intl", pairs="de-en,en-zh").returncode == 0
    directions = json.loads((folder / "scores.json").read_text())["directions"]
    signature = "nrefs:1|case:mixed|eff:no|tok:{}|smooth:exp|version:"
    assert directions["de-en"]["bleu_signature"].startswith(signature.format("intl"))
    assert directions["en-zh"]["bleu_signature"].startswith(signature.format("zh"))
    assert directions["en-zh"]["bleu"] == pytest.approx(100)


def test_thai_is_not_scored_as_one_word(folder: Path) -> None:
    for name in ("text/test.en-th.th", "translations/en-th.txt"):
        (folder / name).write_text("แมวนั่งอยู่บนเก้าอี้\nนกร้องเพลงบนต้นไม้\nสุนัขนอนบนเสื่อ\n")
    (folder / "text" / "test.en-th.en").write_text("\n".join(ENGLISH) + "\n")
    score(folder, pairs="en-th")
    assert json.loads((folder / "scores.json").read_text())["average"]["bleu"] == pytest.approx(100)


# What comet-score of unbabel-comet 2.2.7 writes to the file after --to_json.
COMET = """#!/usr/bin/env python3
import json, sys
flags = dict(zip(sys.argv[1:], sys.argv[2:]))
assert "--gpus 0 --only_system --quiet" in " ".join(sys.argv)
rows = [open(flags[name]).read().splitlines() for name in ("-s", "-t", "-r")]
scores = [{"src": s, "mt": t, "ref": r, "COMET": 0.9 if t == r else 0.25} for s, t, r in zip(*rows)]
json.dump({flags["-t"]: scores}, open(flags["--to_json"], "w"))
"""


def test_comet_is_asked_where_its_program_is_given(folder: Path) -> None:
    program = folder / "comet-score"
    program.write_text(COMET)
    program.chmod(0o755)
    finished = score(folder, "--comet", f"{program} --gpus 0")
    assert [line.split() for line in finished.stdout.splitlines()] == [
        ["direction", "sentences", "BLEU", "chrF", "COMET", "ratio"],
        ["en-de", "3", "0.0", "0.0", "0.2500", "0.00"],
        ["de-en", "3", "100.0", "100.0", "0.9000", "1.00"],
        ["average", "50.0", "50.0", "0.5750", "0.50"],
    ]
    program.write_text("#!/bin/sh\nexit 3\n")
    for command in (program, folder / "missing"):
        line = error_line(score(folder, "--comet", command))
        assert line.startswith(f"score.py: error: --comet {command}: failed")


def test_a_group_without_directions_is_wrong_usage(folder: Path) -> None:
    finished = score(folder, "--group", "into-english")
    assert finished.returncode == 2
    assert "write it as in into-english=*-en" in finished.stderr
