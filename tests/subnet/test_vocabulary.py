"""A trimmed vocabulary loses nothing that the pair needs, and changes no score of what it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from fairseq.data import Dictionary
from fairseq.data.multilingual.multilingual_utils import augment_dictionary

from taskmoe_plugin.files import binarised
from taskmoe_plugin.subnet.decoders import FairseqDecoder, build_model, build_task
from taskmoe_plugin.subnet.fairseq_format import read_model
from taskmoe_plugin.subnet.vocabulary import Vocabulary
from tests.helpers.commands import run
from tests.helpers.corpus import LANGS, STEMS, Corpus, sentence
from tests.subnet.helpers import UNSHARED, extract, load, write_model
from tests.subnet.stock import stock_fairseq, stock_generate_flags

SHARED, SEPARATE = (), (UNSHARED,)


def vocabulary(*lines: str) -> Vocabulary:
    text = "".join(f"{line} 1\n" for line in lines)
    dictionary, tokens = Dictionary(), Dictionary(add_special_symbols=False)
    for line in lines:
        dictionary.add_symbol(line)
    for each in (dictionary, tokens):
        augment_dictionary(each, ["en", "de"], "multilingual", ["main"], None)
    return Vocabulary(text, dictionary, frozenset(tokens.symbols))


def test_special_symbols_language_tokens_and_single_characters_are_kept() -> None:
    full = vocabulary("▁the", "▁of", "e", "▁", "ß", "x@@", "<0xE2>", "__de__", "madeupword0000")
    used = torch.zeros(len(full.symbols), dtype=torch.bool)
    used[full.symbols.index("▁of")] = True
    trimmed = full.trimmed(full.kept_rows(used))
    assert trimmed.symbols == [
        "<s>", "<pad>", "</s>", "<unk>", "▁of", "e", "▁", "ß", "x@@", "<0xE2>", "__de__", "__en__",
    ]  # fmt: skip
    assert trimmed.pieces() == trimmed.symbols[4:-1]


def test_a_trimmed_dictionary_loads_as_the_same_symbols(tmp_path: Path) -> None:
    full = vocabulary("a", "the", "of", "b")
    used = torch.zeros(len(full.symbols), dtype=torch.bool)
    used[full.symbols.index("of")] = True
    rows = full.kept_rows(used)
    (tmp_path / "dict.txt").write_text(full.trimmed(rows).text)
    loaded = Dictionary.load(str(tmp_path / "dict.txt"))
    augment_dictionary(loaded, ["en", "de"], "multilingual", ["main"], None)
    assert loaded.symbols == [full.symbols[row] for row in rows.tolist()]


@pytest.fixture(scope="module", params=[SHARED, SEPARATE], ids=["shared", "separate"])
def models(
    request: pytest.FixtureRequest, corpus: Corpus, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """A full model, its subnet of en-de, and the same with a trimmed vocabulary."""
    directory = tmp_path_factory.mktemp("trimmed")
    path = write_model(corpus, trained / "checkpoint_last.pt", directory / "full.pt", *request.param)
    whole = extract(corpus, path, directory / "whole", "en-de")
    trimmed = extract(corpus, path, directory / "trimmed", "en-de", "--trim-vocabulary", "--verify", "all")
    return path, whole, trimmed


def symbols(directory: Path, lang: str) -> list[str]:
    return [line.rsplit(" ", 1)[0] for line in (directory / f"dict.{lang}.txt").read_text().splitlines()]


def test_only_pieces_of_the_pair_are_left(corpus: Corpus, models: tuple[Path, Path, Path]) -> None:
    _, whole, trimmed = models
    words = {lang: {sentence([stem], lang) for stem in STEMS} for lang in LANGS}
    shared = load(trimmed / "model.pt")["cfg"]["model"]["share_all_embeddings"]
    for lang in ("en", "de"):
        expected = words["en"] | words["de"] if shared else words[lang]
        # Words that happen not to occur in the training data may lack.
        *pieces, first, second, third = symbols(trimmed, lang)
        assert [first, second, third] == [f"__{each}__" for each in LANGS]
        assert len(expected) - 2 <= len(pieces) <= len(expected)
        assert set(pieces) <= expected
        assert (trimmed / f"vocabulary.{lang}.txt").read_text().splitlines() == pieces
    rows = load(trimmed / "model.pt")["model"]["decoder.output_projection.weight"].size(0)
    assert rows == len(symbols(trimmed, "de")) + 4
    content = json.loads((trimmed / "subnet.json").read_text())
    assert content["vocabulary"]["target"] == {"symbols": rows, "of": len(symbols(whole, "de")) + 4}


def test_training_data_is_looked_through_to_its_end(
    corpus: Corpus, models: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, trimmed = models
    monkeypatch.setattr(binarised, "_BLOCK", 7)
    again = extract(corpus, path, tmp_path, "en-de", "--trim-vocabulary")
    for lang in ("en", "de"):
        assert symbols(again, lang) == symbols(trimmed, lang)


def test_scores_before_the_softmax_are_the_same_numbers(corpus: Corpus, models: tuple[Path, Path, Path]) -> None:
    _, whole, trimmed = models
    logits = []
    kept = symbols(trimmed, "de")
    for directory in (whole, trimmed):
        args, task_args, weights = read_model(directory / "model.pt")
        task = build_task(task_args, args.arch, directory, "en-de")
        model = build_model(args, task, weights)
        source, target = (corpus.lines("test", "en", "de", lang)[0].split() for lang in ("en", "de"))
        decoder = FairseqDecoder(task, model)
        [(_, sample)] = decoder._batches([source])
        inputs = torch.tensor([[*decoder.start, *map(task.target_dictionary.index, target)]])
        net_input = {name: sample["net_input"][name] for name in ("src_tokens", "src_lengths")}
        with torch.no_grad():
            found = model(**net_input, prev_output_tokens=inputs)[0]
        logits.append(found[..., [task.target_dictionary.index(piece) for piece in kept]])
    assert logits[0].std() > 0.1
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-6, atol=1e-6)


def test_trimming_is_verified_against_the_full_model(models: tuple[Path, Path, Path]) -> None:
    verified = json.loads((models[2] / "subnet.json").read_text())["verified"]["en-de"]
    assert verified.startswith("scores of ")
    assert "references differ by at most" in verified


def test_stock_fairseq_translates_text_with_a_trimmed_model(
    corpus: Corpus, models: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, _, trimmed = models
    run(
        "preprocess", "--source-lang", "en", "--target-lang", "de", "--testpref", corpus.raw / "test.en-de",
        "--destdir", tmp_path, "--srcdict", trimmed / "dict.en.txt", "--tgtdict", trimmed / "dict.de.txt",
    )  # fmt: skip
    [found] = stock_fairseq([("generate", stock_generate_flags(tmp_path, trimmed / "model.pt", "en-de"))])
    words = {word for _, text in found.values() for word in text.split()}
    assert words <= {*symbols(trimmed, "de"), *(f"__{lang}__" for lang in LANGS), "<unk>"}
    assert len(found) == len(corpus.lines("test", "en", "de", "en"))


def test_text_that_was_spelled_with_other_pieces_can_be_spelled_with_those_that_are_left(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(
        "".join(f"{first}{second} haus baum {first}\n" for first in "abcdefg" for second in "hijklmnop") * 9
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "spm"), vocab_size=60, model_type="bpe", minloglevel=2
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    full = vocabulary(*(model.id_to_piece(index) for index in range(3, model.get_piece_size())))
    used = torch.zeros(len(full.symbols), dtype=torch.bool)
    used[[full.symbols.index(piece) for piece in model.encode("haus ah", out_type=str)]] = True
    kept = set(full.trimmed(full.kept_rows(used)).pieces())
    assert "▁baum" in full.pieces()
    assert "▁baum" not in kept
    # As the documentation does it.
    encoded = [
        part for piece in model.encode("baum haus", out_type=str) for part in ([piece] if piece in kept else piece)
    ]
    assert set(encoded) <= kept
    assert "▁haus" in encoded
    assert model.decode(encoded) == "baum haus"
