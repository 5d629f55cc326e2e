"""A subnet in Hugging Face's format is the full model, to transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from fairseq.data import Dictionary

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.subnet import huggingface_format
from taskmoe_plugin.subnet.decoders import FairseqDecoder, build_model, build_task
from taskmoe_plugin.subnet.huggingface_tokenizer import check_supported, tokenizer
from taskmoe_plugin.subnet.sentencepiece_model import PieceModel
from taskmoe_plugin.subnet.vocabulary import Vocabulary, _parse
from tests.helpers.corpus import Corpus
from tests.helpers.training import train_numbers
from tests.subnet.helpers import UNSHARED, extract, load
from tests.subnet.peers import require, run_peer

PRE = ("--encoder-normalize-before", "--decoder-normalize-before")
MODELS: dict[str, tuple[Any, ...]] = {
    "pre-norm": PRE,
    "post-norm": (),
    "one expert": ("--moe-top-k", 1, *PRE),
    "widths that need padding": ("--moe-expert-ffn-dim", 8),
    "gelu_accurate": ("--activation-fn", "gelu_accurate", *PRE),
    "tanh": ("--activation-fn", "tanh"),
    "stacks of different depth and heads": ("--encoder-layers", 4, "--decoder-attention-heads", 4, *PRE),
    "no scaling of embeddings": ("--no-scale-embedding",),
}  # fmt: skip
TOLERANCE = 1e-5
# Reads directories, source lines, and for each the target's ids; gives ids and log-probabilities.
SCRIPT = """
import json, sys, torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
question = json.load(sys.stdin)
found = {}
for name, (directory, lines, targets) in question.items():
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSeq2SeqLM.from_pretrained(directory).eval()
    scores = []
    with torch.no_grad():
        for line, target in zip(lines, targets):
            batch = tokenizer([line], return_tensors="pt")
            logits = model(**batch, decoder_input_ids=torch.tensor([[2, *target[:-1]]])).logits[0]
            scores.append(logits.float().log_softmax(-1).gather(1, torch.tensor(target)[:, None])[:, 0].tolist())
        batch = tokenizer(lines, return_tensors="pt", padding=True)
        greedy = model.generate(**batch, num_beams=1, max_new_tokens=40).tolist()
    ids = [tokenizer(line).input_ids for line in lines]
    text = tokenizer.batch_decode(greedy, skip_special_tokens=True)
    found[name] = {"class": type(model).__name__, "scores": scores, "greedy": greedy, "ids": ids, "text": text}
print(json.dumps(found))
"""


def lines(numbers: Corpus, lang: str) -> list[str]:
    return (numbers.raw / f"test.{lang}").read_text(encoding="utf-8").splitlines()


def full_model(numbers: Corpus, path: Path) -> FairseqDecoder:
    state = load(path)
    task = build_task(state["cfg"]["task"], state["cfg"]["model"].arch, numbers.bin, "en-de")
    return FairseqDecoder(task, build_model(state["cfg"]["model"], task, state["model"]))


@pytest.fixture(scope="module")
def answers(
    numbers: Corpus,
    of_numbers: Callable[..., Path],
    learned_numbers: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[FairseqDecoder, dict[str, Any]]]:
    """By name of the model: the full one, and what transformers makes of its subnet."""
    require("transformers")
    question, full = {}, {}
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(numbers.raw / "pieces.model"))
    models = {name: of_numbers(*flags) for name, flags in MODELS.items()}
    models["learned pre-norm"] = learned_numbers
    models["learned post-norm"] = train_numbers(numbers, tmp_path_factory.mktemp("post_norm"))
    for name, path in models.items():
        directory = tmp_path_factory.mktemp("huggingface")
        options = ("--format", "huggingface", "--sentencepiece-model", numbers.raw / "pieces.model")
        subnet = extract(numbers, path, directory, "en-de", *options)
        full[name] = full_model(numbers, path)
        symbols: Dictionary = full[name].dictionary
        targets = [
            [symbols.index(piece) for piece in ("__de__", *pieces.encode(line, out_type=str), "</s>")]
            for line in lines(numbers, "de")
        ]
        question[name] = (str(subnet), lines(numbers, "en"), targets)
    return {name: (full[name], answer) for name, answer in run_peer(SCRIPT, question).items()}


def cut(directory: Path, flags: dict[str, Any]) -> tuple[list[list[str]], list[list[str]]]:
    """Odd text as SentencePiece cuts it, with a model trained with some flags, and as its ``tokenizer.json`` does."""
    text = ["one dog sees two cats", "three cats see a house", "a house and a key", "twelve keys and one dog"] * 5
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=str(directory / "p"), hard_vocab_limit=False, minloglevel=2,
        num_threads=1, **{"vocab_size": 40, **flags},
    )  # fmt: skip
    pieces = PieceModel.read(directory / "p.model")
    check_supported(pieces)
    own = sentencepiece.SentencePieceProcessor(model_file=str(directory / "p.model"))
    dictionary = "".join(f"{own.id_to_piece(each)} 1\n" for each in range(3, len(own)))
    vocabulary = Vocabulary(dictionary, _parse(dictionary), frozenset())
    odd = ["  a  house ", "", "   ", "\ta key", "\u3000a\u3000", "a\rdog", " \u1680x", "two cats ", "▁a ▁ key"]
    found = run_peer(
        "import json, sys\nfrom tokenizers import Tokenizer\ntext, lines = json.load(sys.stdin)\n"
        "print(json.dumps([Tokenizer.from_str(text).encode(line).ids for line in lines]))",
        [json.dumps(tokenizer(vocabulary, pieces, [])), odd],
    )
    symbols = vocabulary.dictionary
    expected = [[symbols[symbols.index(each)] for each in [*own.encode(line, out_type=str), "</s>"]] for line in odd]
    return expected, [[symbols[each] for each in row] for row in found]


@pytest.mark.parametrize(
    "flags",
    [
        {}, {"remove_extra_whitespaces": False}, {"normalization_rule_name": "identity"}, {"add_dummy_prefix": False},
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}, {"byte_fallback": True},
    ],
    ids=str,
)  # fmt: skip
def test_white_space_is_cut_as_sentencepiece_was_trained_to(tmp_path: Path, flags: dict[str, Any]) -> None:
    require("transformers")
    expected, found = cut(tmp_path, {**flags, "vocab_size": 300} if "byte_fallback" in flags else flags)
    assert found == expected


def test_blanks_behind_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskMoEError, match="trained with --treat_whitespace_as_suffix"):
        cut(tmp_path, {"treat_whitespace_as_suffix": True})


@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_are_those_of_the_full_model(
    numbers: Corpus, answers: dict[str, tuple[FairseqDecoder, dict[str, Any]]], name: str
) -> None:
    full, answer = answers[name]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(numbers.raw / "pieces.model"))
    sources, targets = (pieces.encode(lines(numbers, lang), out_type=str) for lang in ("en", "de"))
    expected = full.score(sources, targets)
    # The target's language token is given, not scored, in fairseq.
    found = [scores[1:] for scores in answer["scores"]]
    gaps = [abs(a - b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)]
    assert max(gaps) < TOLERANCE
    assert max(map(max, expected)) - min(map(min, expected)) > 0.5


@pytest.mark.parametrize("name", ["learned pre-norm", "learned post-norm"])
def test_greedy_translations_are_those_of_the_full_model(
    numbers: Corpus, answers: dict[str, tuple[FairseqDecoder, dict[str, Any]]], name: str
) -> None:
    full, answer = answers[name]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(numbers.raw / "pieces.model"))
    expected = full.translate(pieces.encode(lines(numbers, "en"), out_type=str), beam=1)
    special = {full.dictionary.index(token) for token in ("</s>", "<pad>")}
    found = [[full.dictionary[each] for each in row if each not in special] for row in answer["greedy"]]
    assert [row[0] for row in found] == ["__de__"] * len(found)
    # fairseq goes on where transformers stops after 40 tokens.
    assert [row[1:40] for row in found] == [row[:39] for row in expected]
    assert len({tuple(row) for row in found}) > 2


def test_the_class_is_the_one_that_normalises_where_the_model_does(answers: dict[str, Any]) -> None:
    assert answers["pre-norm"][1]["class"] == "M2M100ForConditionalGeneration"
    assert answers["post-norm"][1]["class"] == "MarianMTModel"


def test_text_is_cut_as_sentencepiece_cuts_it(numbers: Corpus, answers: dict[str, Any]) -> None:
    full, answer = answers["pre-norm"]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(numbers.raw / "pieces.model"))
    expected = [["__de__", *pieces.encode(line, out_type=str), "</s>"] for line in lines(numbers, "en")]
    assert [[full.dictionary[each] for each in row] for row in answer["ids"]] == expected
    assert not [text for text in answer["text"] if "▁" in text or "__" in text]


def test_odd_text_is_cut_as_sentencepiece_cuts_it(
    numbers: Corpus, of_numbers: Callable[..., Path], tmp_path: Path
) -> None:
    require("transformers")
    options = ("--format", "huggingface", "--sentencepiece-model", numbers.raw / "pieces.model")
    subnet = extract(numbers, of_numbers(*PRE), tmp_path, "en-de", *options)
    odd = ["  two   apples ", "ﬁve\tbooks", "\uff21 house", "é e\u0301", "x \u2013 y", "", "one\u00a0key", "ÄPFEL 12"]
    script = """
import json, sys
from transformers import AutoTokenizer
directory, lines = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(directory)
print(json.dumps([tokenizer(line).input_ids for line in lines]))
"""
    found = run_peer(script, [str(subnet), odd])
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(numbers.raw / "pieces.model"))
    symbols = json.loads((subnet / "tokenizer.json").read_text())["model"]["vocab"]
    ids = {symbol: index for index, (symbol, _) in enumerate(symbols)}
    for line, row in zip(odd, found, strict=True):
        expected = [ids.get(piece, 3) for piece in ("__de__", *pieces.encode(line, out_type=str), "</s>")]
        assert row == expected, line


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((UNSHARED,), "--share-all-embeddings"),
        (("--encoder-normalize-before",), "one stack with --normalize-before"),
        (("--layernorm-embedding", *PRE), "--layernorm-embedding"),
        (("--encoder-learned-pos",), "learned positions"),
        (("--no-decoder-final-norm", *PRE), "--no-decoder-final-norm"),
        (("--encoder-moe-routing", "token"), "MoE layers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_class_represents_is_refused(
    numbers: Corpus, of_numbers: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    flags: Any, expected: str,
) -> None:  # fmt: skip
    options = ("--format", "huggingface", "--sentencepiece-model", numbers.raw / "pieces.model")
    with pytest.raises(SystemExit) as stopped:
        extract(numbers, of_numbers(*flags), tmp_path / "out", "en-de", *options)
    assert stopped.value.code == 1
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_can_be_stored_in_half_precision(
    numbers: Corpus, of_numbers: Callable[..., Path], tmp_path: Path
) -> None:
    options = ("--format", "huggingface", "--sentencepiece-model", numbers.raw / "pieces.model", "--half", "fp16")
    subnet = extract(numbers, of_numbers(*PRE), tmp_path, "en-de", *options)
    assert json.loads((subnet / "config.json").read_text())["dtype"] == "float16"
    header = (subnet / "model.safetensors").read_bytes()
    assert b'"dtype":"F16"' in header
    assert b'"dtype":"F32"' not in header


def test_weights_that_cannot_be_written_are_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        huggingface_format._save({"w": torch.zeros(3)}, tmp_path / "no" / "model.safetensors")
