"""The SentencePiece model, the dictionary and the encoded text."""

from pathlib import Path

import pytest
import sentencepiece as spm

import encode
import learn_vocabulary
from tests.examples.commands import error_line, run_step

LINES = {
    "en": [f"the number {n} follows {n - 1}" for n in range(100)],
    "de": [f"nach {n} kommt {n + 1}" for n in range(100)],
}


@pytest.fixture
def text_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "text"
    directory.mkdir()
    for split in ("train", "valid"):
        for lang, lines in LINES.items():
            (directory / f"{split}.de-en.{lang}").write_text("\n".join(lines) + "\n")
    return directory


def test_a_line_that_many_pairs_share_counts_once(text_dir: Path) -> None:
    (text_dir / "train.en-fr.en").write_text("\n".join(LINES["en"]) + "\n")
    (text_dir / "train.en-fr.fr").write_text("\n".join(LINES["de"]) + "\n")
    lines = list(learn_vocabulary.distinct_lines(text_dir))
    assert sorted(lines) == sorted(LINES["en"] + LINES["de"] * 2)


def test_the_dictionary_holds_every_piece_that_text_is_encoded_with(text_dir: Path) -> None:
    vocabulary, pieces = text_dir.parent / "vocabulary", text_dir.parent / "pieces"
    learn_vocabulary.learn(text_dir, vocabulary, size=60, character_coverage=1.0, max_lines=1000)
    encode.encode(vocabulary / "spm.model", text_dir, pieces)
    dictionary = {line.split(" ")[0] for line in (vocabulary / "dict.txt").read_text().splitlines()}
    assert len(dictionary) == 60 - 3
    assert not dictionary & {"<unk>", "<s>", "</s>"}
    encoded = (pieces / "train.de-en.en").read_text().splitlines()
    assert {piece for line in encoded for piece in line.split()} <= dictionary
    processor = spm.SentencePieceProcessor(model_file=str(vocabulary / "spm.model"))
    assert [processor.decode(line.split()) for line in encoded] == LINES["en"]


def test_a_vocabulary_that_the_text_is_too_small_for_is_one_clear_line(text_dir: Path) -> None:
    args = ("--text-dir", text_dir, "--output-dir", text_dir.parent / "vocabulary", "--size", 5000)
    assert "--size 5000: SentencePiece could not learn this vocabulary" in error_line(
        run_step("learn_vocabulary.py", *args)
    )
    assert list(text_dir.parent.iterdir()) == [text_dir]


def test_a_directory_without_text_is_one_clear_line(tmp_path: Path) -> None:
    args = ("--text-dir", tmp_path, "--output-dir", tmp_path / "vocabulary", "--size", 100)
    assert "no files train." in error_line(run_step("learn_vocabulary.py", *args))
