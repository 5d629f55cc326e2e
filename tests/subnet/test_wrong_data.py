"""Data and dictionaries that are not those of training end in one clear line, with nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taskmoe_plugin.tasks.remembered_flags import forget_dictionaries
from tests.helpers.corpus import Corpus
from tests.subnet.helpers import error_of, extract, rewrite


def shortened(corpus: Corpus, data: Path) -> str:
    path = data / "dict.en.txt"
    path.write_text("".join((corpus.bin / "dict.en.txt").read_text().splitlines(keepends=True)[:-3]))
    return f"{path}: has 43 symbols with the language tokens, the checkpoint's embeddings have 46"


def malformed(corpus: Corpus, data: Path) -> str:
    path = data / "dict.en.txt"
    path.write_text("a word without a count\n")
    return f"{path}: line 1 is not 'piece count': 'a word without a count'"


def not_utf8(corpus: Corpus, data: Path) -> str:
    path = data / "dict.en.txt"
    path.write_bytes(b"\xff\xfe 1\n")
    return f"{path}: cannot be read"


def reordered(corpus: Corpus, data: Path) -> str:
    lines = (corpus.bin / "dict.en.txt").read_text().splitlines(keepends=True)
    for lang in ("en", "de"):
        (data / f"dict.{lang}.txt").write_text("".join(reversed(lines)))
    return f"{data / 'dict.en.txt'}: is not the dictionary that the model was trained with; give the DATA_BIN"


def missing(corpus: Corpus, data: Path) -> str:
    return f"{data / 'dict.en.txt'}: no such file; give the DATA_BIN that fairseq-preprocess wrote"


@pytest.mark.parametrize("spoil", [shortened, malformed, not_utf8, reordered, missing], ids=lambda each: each.__name__)
def test_a_dictionary_that_does_not_fit_is_refused(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any
) -> None:
    (tmp_path / "data").mkdir()
    expected = spoil(corpus, tmp_path / "data")
    assert expected in error_of(capsys, tmp_path / "out", tmp_path / "data", full, "en-de")


def test_what_training_did_not_remember_of_dictionaries_must_be_equal_where_one_is_shared(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rewrite(full, tmp_path / "full.pt", lambda state: forget_dictionaries(state["cfg"]["task"]))
    data = tmp_path / "data"
    data.mkdir()
    lines = (corpus.bin / "dict.en.txt").read_text().splitlines(keepends=True)
    (data / "dict.en.txt").write_text("".join(lines))
    (data / "dict.de.txt").write_text("".join(reversed(lines)))
    line = error_of(capsys, tmp_path / "out", data, path, "en-de")
    assert f"{data}: the dictionaries of en and de differ, and the model has one for both" in line


def test_a_dictionary_that_has_moved_since_training_is_that_of_the_data(
    corpus: Corpus, full: Path, tmp_path: Path
) -> None:
    moved = str(tmp_path / "moved.txt")
    path = rewrite(full, tmp_path / "full.pt", lambda state: setattr(state["cfg"]["task"], "fixed_dictionary", moved))
    assert (extract(corpus, path, tmp_path / "out", "en-de") / "model.pt").exists()


@pytest.mark.parametrize(
    "form", [("--half", "fp16"), ("--format", "ctranslate2", "--quantization", "float16")], ids=lambda form: form[-1]
)
def test_weights_that_half_precision_cannot_hold_are_refused(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: tuple[str, ...]
) -> None:
    path = rewrite(full, tmp_path / "f.pt", lambda state: state["model"]["decoder.layer_norm.weight"].fill_(7e4))
    assert "no finite numbers in float16" in error_of(capsys, tmp_path / "out", corpus.bin, path, "en-de", *form)


def test_data_that_trimming_or_verifying_needs_must_be_there(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for lang in ("en", "de"):
        (data / f"dict.{lang}.txt").write_text((corpus.bin / f"dict.{lang}.txt").read_text())
    line = error_of(capsys, tmp_path / "out", data, full, "en-de", "--trim-vocabulary")
    assert f"{data}: no training data of en-de (train.en-de.en.bin), which --trim-vocabulary needs" in line
    line = error_of(capsys, tmp_path / "out", data, full, "en-de", "--verify")
    assert f"{data}: no test set of en-de; binarise one" in line
