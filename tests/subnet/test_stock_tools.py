"""A folded subnet's directory is all that fairseq's tools need: no plugin, no flags of the training's languages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.corpus import Corpus
from tests.helpers.training import generate
from tests.subnet.helpers import POSITIONS, UNSHARED, extract, load, write_model
from tests.subnet.stock import ask, assert_equal, stock_fairseq


@pytest.fixture(scope="module")
def subnet(corpus: Corpus, learned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The subnet of en-de of a model that has learned something."""
    return extract(corpus, learned, tmp_path_factory.mktemp("stock"), "en-de")


@pytest.fixture(scope="module")
def expected(corpus: Corpus, learned: Path) -> dict[int, tuple[float, str]]:
    """What the full model makes of the test set."""
    return generate(corpus, learned, "en-de").hypotheses


def binarize(corpus: Corpus, subnet: Path, directory: Path) -> Path:
    """The test set with language tokens in the text, binarised with the subnet's own dictionaries."""
    for lang in ("en", "de"):
        lines = corpus.lines("test", "en", "de", lang)
        (directory / f"tokens.{lang}").write_text("".join(f"__de__ {line}\n" for line in lines))
    dictionaries = ("--srcdict", subnet / "dict.en.txt", "--tgtdict", subnet / "dict.de.txt")
    argv = ("--source-lang", "en", "--target-lang", "de", "--testpref", directory / "tokens", "--destdir", directory,
            *dictionaries, "--workers", 1)  # fmt: skip
    stock_fairseq([("preprocess", [str(each) for each in argv])])
    return directory


def without_token(text: str) -> str:
    """A translation without the language token that it begins with; there may be nothing else."""
    return text.removeprefix("__de__").lstrip()


def test_task_translation_generates_what_the_full_model_does(
    corpus: Corpus, subnet: Path, expected: dict[int, tuple[float, str]], tmp_path: Path
) -> None:
    data = binarize(corpus, subnet, tmp_path)
    argv = (data, "--task", "translation", "--path", subnet / "model.pt", "--source-lang", "en", "--target-lang", "de",
            "--prefix-size", 1, "--max-len-b", 12, "--beam", 2, "--cpu", "--num-workers", 0,
            "--required-batch-size-multiple", 1)  # fmt: skip
    [found] = stock_fairseq([("generate", [str(each) for each in argv])])
    assert all(text.startswith("__de__") for _, text in found.values())
    assert_equal({row: (score, without_token(text)) for row, (score, text) in found.items()}, expected)


def test_the_training_s_languages_need_not_be_named(
    corpus: Corpus, subnet: Path, expected: dict[int, tuple[float, str]]
) -> None:
    argv = (corpus.bin, "--task", "translation_multi_simple_epoch", "--lang-pairs", "en-de", "--source-lang", "en",
            "--target-lang", "de", "--encoder-langtok", "tgt", "--decoder-langtok", "--path", subnet / "model.pt",
            "--max-len-b", 12, "--beam", 2, "--cpu", "--num-workers", 0, "--required-batch-size-multiple", 1,
            "--source-dict", subnet / "dict.en.txt", "--target-dict", subnet / "dict.de.txt")  # fmt: skip
    [found] = stock_fairseq([("generate", [str(each) for each in argv])])
    assert_equal(found, expected)


def test_the_python_interface_translates_as_the_full_model_does(
    corpus: Corpus, subnet: Path, expected: dict[int, tuple[float, str]]
) -> None:
    lines = corpus.lines("test", "en", "de", "en")
    [found] = ask([("hub", str(subnet), {}, lines, 12)])
    # The model itself begins with the language token.
    assert [without_token(text) for text in found] == [text for _, (_, text) in sorted(expected.items())]


@pytest.mark.parametrize("flags", [(), ("--trim-vocabulary",)], ids=["whole", "trimmed"])
def test_the_python_interface_finds_the_sentencepiece_model(
    numbers: Corpus, learned_numbers: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    options = ("--sentencepiece-model", numbers.raw / "pieces.model", *flags)
    subnet = extract(numbers, learned_numbers, tmp_path, "en-de", *options)
    lines = (numbers.raw / "test.en").read_text(encoding="utf-8").splitlines()
    [found] = ask([("hub", str(subnet), {"bpe": "sentencepiece"}, lines, 60)])
    assert not [text for text in found if "▁" in text]
    whole = " ".join(found)
    assert sum(word in whole for word in ("kosten", "Euro", "haben", "wir", "gesehen")) > 2


def test_lexical_constraints_are_kept(corpus: Corpus, subnet: Path) -> None:
    # The third word of the reference, in each translation of a longer sentence.
    lines = [line for line in corpus.lines("test", "en", "de", "en") if len(line.split()) > 3][:6]
    wanted = ["baen" for _ in lines]
    argv = [str(subnet), "--task", "translation", "--path", str(subnet / "model.pt"), "--source-lang", "en",
            "--target-lang", "de", "--cpu", "--beam", "4", "--max-len-b", "12", "--constraints"]  # fmt: skip
    text = "".join(f"__de__ {line}\t{word}\n" for line, word in zip(lines, wanted))
    [answer] = stock_fairseq([("interactive", argv, text)])
    found = [text.split() for _, text in answer.values()]
    assert len(found) == len(lines)
    assert all(word in words for words, word in zip(found, wanted))


@pytest.mark.parametrize("flags", [(), ("--encoder-normalize-before", "--decoder-normalize-before", UNSHARED)],
                         ids=["shared post-norm", "separate pre-norm"])  # fmt: skip
def test_ctranslate2_s_own_converter_takes_it(
    corpus: Corpus, trained: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    pytest.importorskip("ctranslate2")
    path = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *flags)
    subnet = extract(corpus, path, tmp_path / "fairseq", "en-de", "--trim-vocabulary")
    ours = extract(corpus, path, tmp_path / "ours", "en-de", "--trim-vocabulary", "--format", "ctranslate2")
    from taskmoe_plugin.subnet.decoders import CTranslate2Decoder

    sides = [[line.split() for line in corpus.lines("test", "en", "de", lang)] for lang in ("en", "de")]
    known = set((subnet / "vocabulary.de.txt").read_text().split())
    kept = [row for row, target in enumerate(sides[1]) if set(target) <= known]
    sources, targets = ([side[row] for row in kept] for side in sides)
    with_tokens = [[["__de__", *line] for line in side] for side in (sources, targets)]
    expected = CTranslate2Decoder(ours, load(path)["cfg"]["task"], "en-de", POSITIONS).score(sources, targets)
    [answer] = ask([("convert", str(subnet), str(tmp_path / "theirs"), with_tokens)])
    found = [scores[1:] for scores in answer]
    gaps = [abs(a - b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)]
    assert max(gaps) < 1e-5
