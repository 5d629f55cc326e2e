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


def test_pairs_are_sampled_with_a_temperature(tmp_path: Path) -> None:
    for name, count in (("de-en", 3200), ("en-fr", 100)):
        for lang in name.split("-"):
            lines = "".join(f"{lang} {number}\n" for number in range(count))
            (tmp_path / f"train.{name}.{lang}").write_text(lines)
    lines = list(learn_vocabulary.sampled_lines(tmp_path, temperature=5, max_lines=900))
    # 3200^(1/5) : 100^(1/5) is 2 : 1, and both sides of a pair count the same.
    assert {lang: sum(line.startswith(lang) for line in lines) for lang in ("de", "fr", "en")} == {
        "de": 300,
        "fr": 150,
        "en": 450,
    }
    german = [int(line.split()[1]) for line in lines if line.startswith("de")]
    assert len(set(german)) == 300
    assert sum(german) / 300 == pytest.approx(1600, rel=0.15)
    # A pair with fewer lines than its share is repeated, every line about equally often.
    french = [line for line in lines if line.startswith("fr")]
    assert {french.count(line) for line in french} == {1, 2}
    assert len(set(french)) == 100
    assert lines == list(learn_vocabulary.sampled_lines(tmp_path, temperature=5, max_lines=900))


def test_a_vocabulary_of_sampled_pairs_knows_the_rare_language(text_dir: Path) -> None:
    for lang, letters in (("en", "abc"), ("fr", "éèù")):
        (text_dir / f"train.en-fr.{lang}").write_text(f"{letters}\n{letters[::-1]}\n")
    directories = ("--text-dir", text_dir, "--output-dir", text_dir.parent / "vocabulary")
    options = ("--size", 60, "--temperature", 5, "--max-lines", 400, "--character-coverage", 1)
    finished = run_step("learn_vocabulary.py", *directories, *options)
    assert finished.returncode == 0, finished.stderr
    assert set("éèù") <= set((text_dir.parent / "vocabulary" / "dict.txt").read_text())


def test_training_text_is_dealt_to_shards_and_small_pairs_stay_whole(text_dir: Path) -> None:
    vocabulary, pieces = text_dir.parent / "vocabulary", text_dir.parent / "pieces"
    for lang in ("en", "fr"):
        (text_dir / f"train.en-fr.{lang}").write_text("the number 1\n" * 30)
    learn_vocabulary.learn(text_dir, vocabulary, size=60, character_coverage=1.0, max_lines=1000)
    encode.encode(vocabulary / "spm.model", text_dir, pieces, shard_lines=40)
    processor = spm.SentencePieceProcessor(model_file=str(vocabulary / "spm.model"))
    shards = [pieces, pieces / "shard2", pieces / "shard3"]
    for lang, lines in LINES.items():
        read = [(shard / f"train.de-en.{lang}").read_text().splitlines() for shard in shards]
        assert [[processor.decode(line.split()) for line in shard] for shard in read] == [
            lines[0::3],
            lines[1::3],
            lines[2::3],
        ]
    assert [path.name for shard in shards[1:] for path in sorted(shard.iterdir())] == [
        "train.de-en.de",
        "train.de-en.en",
    ] * 2
    assert len((pieces / "train.en-fr.fr").read_text().splitlines()) == 30
    assert len((pieces / "valid.de-en.de").read_text().splitlines()) == 100
