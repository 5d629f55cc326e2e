"""A subnet takes its SentencePiece model along, and a trimmed one cuts text into pieces that are left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from taskmoe_plugin.cli.extract_subnet import main
from taskmoe_plugin.subnet.sentencepiece_model import protocol
from tests.helpers.corpus import Corpus
from tests.subnet.helpers import UNSHARED, extract, load

NAME = "sentencepiece.bpe.model"


def model_of(numbers: Corpus) -> Path:
    return numbers.raw / "pieces.model"


def text(numbers: Corpus, lang: str, split: str = "test") -> list[str]:
    return (numbers.raw / f"{split}.{lang}").read_text(encoding="utf-8").splitlines()


def open_pieces(path: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def symbols(subnet: Path, lang: str) -> set[str]:
    lines = (subnet / f"dict.{lang}.txt").read_text(encoding="utf-8").splitlines()
    return {line.rsplit(" ", 1)[0] for line in lines}


def test_a_whole_vocabulary_has_the_model_as_it_is(
    numbers: Corpus, of_numbers: Callable[..., Path], tmp_path: Path
) -> None:
    subnet = extract(numbers, of_numbers(), tmp_path, "en-de", "--sentencepiece-model", model_of(numbers))
    before, after = open_pieces(model_of(numbers)), open_pieces(subnet / NAME)
    lines = text(numbers, "fr")
    assert after.encode(lines, out_type=str) == before.encode(lines, out_type=str)
    assert json.loads((subnet / "subnet.json").read_text())["sentencepiece_model"] == NAME


@pytest.mark.parametrize("flags", [(), (UNSHARED,)], ids=["shared", "separate"])
def test_a_trimmed_vocabulary_cuts_all_text_into_its_own_pieces(
    numbers: Corpus, of_numbers: Callable[..., Path], tmp_path: Path, flags: Any
) -> None:
    options = ("--sentencepiece-model", model_of(numbers), "--trim-vocabulary")
    subnet = extract(numbers, of_numbers(*flags), tmp_path, "en-de", *options)
    before, after = open_pieces(model_of(numbers)), open_pieces(subnet / NAME)
    kept = symbols(subnet, "en")
    # French has pieces that English and German do not use; they are spelled out.
    lines = text(numbers, "fr")
    assert not {piece for line in before.encode(lines, out_type=str) for piece in line} <= kept
    found = after.encode(lines, out_type=str)
    assert {piece for line in found for piece in line} <= kept
    assert [after.decode(line) for line in found] == lines
    # What the model was trained on is cut as before, and every piece can still be joined.
    english = text(numbers, "en", "train")
    assert after.encode(english, out_type=str) == before.encode(english, out_type=str)
    german = before.encode(text(numbers, "de"), out_type=str)
    assert [after.decode(line) for line in german] == text(numbers, "de")


def broken(path: Path) -> str:
    path.write_text("no model")
    return "no SentencePiece model; give the .model file of spm_train"


def damaged(path: Path) -> str:
    proto = protocol.ModelProto()
    proto.ParseFromString((path.parent / "pieces.model").read_bytes())
    proto.normalizer_spec.precompiled_charsmap = b"rubbish"
    path.write_bytes(proto.SerializeToString())
    return "damaged ("


def missing(path: Path) -> str:
    return "cannot be read (No such file or directory)"


def of_other_text(path: Path) -> str:
    lines = path.with_name("text")
    lines.write_text("".join(f"{chr(0x410 + each % 32)}{chr(0x430 + each % 31)} \n" for each in range(500)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines), model_prefix=str(path.with_suffix("")), vocab_size=80, minloglevel=2, hard_vocab_limit=False
    )
    return "of the pieces in the dictionaries of"


@pytest.mark.parametrize("spoil", [broken, damaged, missing, of_other_text], ids=lambda each: each.__name__)
def test_a_wrong_model_is_refused(
    numbers: Corpus, of_numbers: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any
) -> None:
    path = tmp_path / "other.model"
    shutil.copy(numbers.raw / "pieces.model", tmp_path)
    expected = spoil(path)
    with pytest.raises(SystemExit) as stopped:
        extract(numbers, of_numbers(), tmp_path / "out", "en-de", "--sentencepiece-model", path)
    assert stopped.value.code == 1
    assert f"--sentencepiece-model {path}: " in (error := capsys.readouterr().err)
    assert expected in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["huggingface", "argos"])
def test_formats_that_hold_a_tokenizer_ask_for_the_model(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    argv = (corpus.bin, "--path", full, "--lang-pairs", "en-de", "--output-dir", tmp_path, "--format", format)
    with pytest.raises(SystemExit) as stopped:
        main([str(each) for each in argv])
    assert stopped.value.code == 2
    assert "give --sentencepiece-model" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["fairseq", "ctranslate2", "huggingface", "argos"])
def test_nothing_in_subnet_json_is_of_the_machine_it_was_made_on(
    numbers: Corpus, of_numbers: Callable[..., Path], tmp_path: Path, format: str
) -> None:
    options = ("--sentencepiece-model", model_of(numbers), "--format", format, "--license", "cc-by-4.0")
    subnet = extract(
        numbers, of_numbers("--encoder-normalize-before", "--decoder-normalize-before"), tmp_path, "en-de", *options
    )
    for name in ("subnet.json", "README.md"):
        written = (subnet / name).read_text(encoding="utf-8")
        assert not [part for part in (str(tmp_path), str(numbers.raw.parent), "/tmp") if part in written]
    if format == "fairseq":
        cfg = load(subnet / "model.pt")["cfg"]
        names = ("data", "lang_pairs", "lang_dict", "encoder_embed_path")
        for part in (cfg["task"], cfg["model"], vars(cfg["model"])):
            assert [part[name] for name in names] == [".", ["en-de"], None, None]
            assert not [name for name in part if name.startswith("distill_")]
