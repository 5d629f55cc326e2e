"""Subnets in CTranslate2 score and translate as fairseq does."""

from __future__ import annotations

import json
import weakref
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from taskmoe_plugin.cli.extract_subnet import main
from taskmoe_plugin.subnet import extract as extraction
from taskmoe_plugin.subnet import weights
from taskmoe_plugin.subnet.decoders import CTranslate2Decoder, FairseqDecoder, build_model, build_task
from tests.helpers.corpus import Corpus
from tests.subnet.helpers import POSITIONS, UNSHARED, extract, load, rewrite, write_model
from tests.subnet.stock import TOLERANCE

ctranslate2 = pytest.importorskip("ctranslate2")
PRE = ("--encoder-normalize-before", "--decoder-normalize-before")
MODELS: dict[str, tuple[Any, ...]] = {
    "pre-norm": PRE,
    "post-norm": (),
    "one expert": ("--moe-top-k", 1, *PRE),
    "three experts": ("--moe-top-k", 3),
    "separate embeddings": (UNSHARED, *PRE),
    "learned positions": ("--encoder-learned-pos", "--decoder-learned-pos"),
    "layernorm of embeddings": ("--layernorm-embedding", *PRE),
    "gelu": ("--activation-fn", "gelu"),
    "gelu_accurate": ("--activation-fn", "gelu_accurate", *PRE),
    "tanh": ("--activation-fn", "tanh"),
    "stacks of different depth, heads and norms": (
        "--encoder-layers", 4, "--decoder-attention-heads", 4, "--encoder-normalize-before",
    ),
    "no scaling of embeddings": ("--no-scale-embedding",),
    "no final norm": ("--no-decoder-final-norm", *PRE),
    "static gates": ("--moe-task-gate", "static", *PRE),
}  # fmt: skip


def sentences(corpus: Corpus) -> tuple[list[list[str]], list[list[str]]]:
    sides = [[line.split() for line in corpus.lines("test", "en", "de", lang)] for lang in ("en", "de")]
    return sides[0], sides[1]


def open_full(corpus: Corpus, path: Path) -> FairseqDecoder:
    state = load(path)
    args, task_args = state["cfg"]["model"], state["cfg"]["task"]
    task = build_task(task_args, args.arch, corpus.bin, "en-de")
    return FairseqDecoder(task, build_model(args, task, state["model"]))


def open_converted(directory: Path, path: Path) -> CTranslate2Decoder:
    return CTranslate2Decoder(directory, load(path)["cfg"]["task"], "en-de", POSITIONS)


def gaps(one: list[list[float]], other: list[list[float]]) -> list[float]:
    return [abs(a - b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)]


def assert_same_but_for_ties(found: list[list[str]], sources: list[list[str]], full: FairseqDecoder) -> None:
    """Greedy translations are the full model's, up to a token that is as good as another."""
    for source, ours, theirs in zip(sources, found, full.translate(sources, beam=1), strict=True):
        if ours != theirs:
            place = next(index for index, (a, b) in enumerate(zip_longest(ours, theirs)) if a != b)
            if ours[place : place + 1] == ["<blank>"]:
                continue  # padding, which only random weights make likely, and which fairseq never chooses
            scores = full.score([source] * 2, [each[: place + 1] for each in (ours, theirs)])
            assert abs(scores[0][place] - scores[1][place]) < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_token_scores_are_those_of_the_full_model(corpus: Corpus, trained: Path, tmp_path: Path, name: str) -> None:
    path = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *MODELS[name])
    directory = extract(corpus, path, tmp_path, "en-de", "--format", "ctranslate2")
    full, converted = open_full(corpus, path), open_converted(directory, path)
    sources, targets = sentences(corpus)
    expected = full.score(sources, targets)
    assert max(map(max, expected)) - min(map(min, expected)) > 0.5
    assert max(gaps(converted.score(sources, targets), expected)) < TOLERANCE
    assert_same_but_for_ties(converted.translate(sources, beam=1), sources, full)


@pytest.mark.parametrize(
    ("quantization", "limit"),
    # A processor without arithmetic for int16 computes in int8.
    [("float32", 1e-4), ("int16", 0.5), ("int8", 0.5), ("int8_float32", 0.5), ("float16", 0.05), ("bfloat16", 0.3)],
)
def test_quantised_models_score_nearly_as_the_full_model_does(
    corpus: Corpus, learned: Path, tmp_path: Path, quantization: str, limit: float
) -> None:
    flags = ("--format", "ctranslate2", "--quantization", quantization, "--verify", "all")
    directory = extract(corpus, learned, tmp_path, "en-de", *flags)
    sources, targets = sentences(corpus)
    found = open_converted(directory, learned).score(sources, targets)
    assert max(gaps(found, open_full(corpus, learned).score(sources, targets))) < limit
    content = json.loads((directory / "subnet.json").read_text())
    assert content["quantization"] == quantization
    assert content["subnet"]["bytes"] == (directory / "model.bin").stat().st_size


def test_layers_keep_their_widths_and_nothing_is_padded(corpus: Corpus, full: Path, tmp_path: Path) -> None:
    own = extract(corpus, full, tmp_path / "own", "en-de", "--unpadded")
    directory = extract(corpus, full, tmp_path, "en-de", "--format", "ctranslate2")
    sizes = [json.loads((path / "subnet.json").read_text())["subnet"]["parameters"] for path in (own, directory)]
    assert sizes[0] == sizes[1]
    assert json.loads((directory / "subnet.json").read_text())["ffn_dims"] == {"encoder": [24, 48], "decoder": [24, 48]}


def test_smaller_types_make_smaller_files(corpus: Corpus, full: Path, tmp_path: Path) -> None:
    def size(quantization: str) -> int:
        flags = ("--format", "ctranslate2", "--quantization", quantization)
        return (extract(corpus, full, tmp_path / quantization, "en-de", *flags) / "model.bin").stat().st_size

    assert size("int8") < size("int16") < size("float32")


def test_a_trimmed_model_scores_as_the_full_one_over_the_same_pieces(
    corpus: Corpus, full: Path, tmp_path: Path
) -> None:
    flags = ("--format", "ctranslate2", "--trim-vocabulary", "--verify", "all")
    directory = extract(corpus, full, tmp_path, "en-de", *flags)
    vocabulary = json.loads((directory / "shared_vocabulary.json").read_text())
    assert vocabulary[:4] == ["<s>", "<blank>", "</s>", "<unk>"]
    assert vocabulary[-3:] == ["__en__", "__de__", "__fr__"]
    assert not [word for word in vocabulary if word.startswith("le")]
    content = json.loads((directory / "subnet.json").read_text())
    assert content["verified"]["en-de"].startswith("scores of ")


def test_the_client_of_the_documentation_translates(corpus: Corpus, learned: Path, tmp_path: Path) -> None:
    directory = extract(corpus, learned, tmp_path, "en-de", "--format", "ctranslate2", "--quantization", "int8")
    prefixes = json.loads((directory / "subnet.json").read_text())["prefixes"]["en-de"]
    translator = ctranslate2.Translator(str(directory))
    sources = sentences(corpus)[0]
    results = translator.translate_batch(sources, target_prefix=[prefixes["target"]] * len(sources))
    translations = [result.hypotheses[0] for result in results]
    assert all(each[0] == "__de__" for each in translations)
    words = [word for each in translations for word in each[1:]]
    assert sum(word.endswith("en") for word in words) > len(words) / 2


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--encoder-moe-routing", "token"), "MoE layers"),
        (("--activation-fn", "linear"), "--activation-fn linear"),
        (("--no-token-positional-embeddings",), "--no-token-positional-embeddings"),
        (("--adaptive-softmax-cutoff", "10,20", UNSHARED), "--adaptive-softmax-cutoff"),
        (("--cross-self-attention",), "--cross-self-attention"),
        (("--decoder-output-dim", 12, UNSHARED), "embeddings of another width"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_ctranslate2_cannot_compute_is_refused(
    corpus: Corpus, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: Any, reason: str
) -> None:
    path = write_model(corpus, trained / "checkpoint_last.pt", tmp_path / "full.pt", *flags)
    with pytest.raises(SystemExit) as stopped:
        extract(corpus, path, tmp_path / "out", "en-de", "--format", "ctranslate2")
    assert stopped.value.code == 1
    assert f"--format ctranslate2: CTranslate2 does not support {reason}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_several_pairs_in_one_model_are_refused(
    corpus: Corpus, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        corpus.bin,
        "--path",
        full,
        "--lang-pairs",
        "de-en+fr-en",
        "--output-dir",
        tmp_path,
        "--format",
        "ctranslate2",
    ]
    with pytest.raises(SystemExit):
        main([str(each) for each in argv])
    assert "does not support MoE layers" in capsys.readouterr().err


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_the_model_is_never_in_memory_as_a_whole(
    corpus: Corpus, full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = total = 0

    def counting(*args: Any) -> Any:
        read = weights.reader(*args)

        def count(name: str, expert: int | None = None) -> Tensor:
            nonlocal most, total
            tensor = read(name, expert)
            alive.append(weakref.ref(tensor))
            most = max(most, sum(each.nbytes for ref in alive if (each := ref()) is not None))
            total += tensor.nbytes
            return tensor

        return count

    monkeypatch.setattr(extraction, "reader", counting)
    directory = extract(corpus, full, tmp_path, "en-de", "--format", "ctranslate2", "--quantization", quantization)
    largest = load(full)["model"]["encoder.embed_tokens.weight"].nbytes
    assert total > 0.9 * 4 * json.loads((directory / "subnet.json").read_text())["subnet"]["parameters"]
    assert most <= 2 * largest < total / 3


@pytest.mark.parametrize("trim", [(), ("--trim-vocabulary",)], ids=["whole", "trimmed"])
def test_the_model_puts_the_source_s_language_token_in_itself(
    corpus: Corpus, learned: Path, tmp_path: Path, trim: tuple[str, ...]
) -> None:
    directory = extract(corpus, learned, tmp_path, "en-de", "--format", "ctranslate2", *trim)
    config = json.loads((directory / "config.json").read_text())
    assert (config["add_source_bos"], config["bos_token"]) == (True, "__de__")
    prefixes = json.loads((directory / "subnet.json").read_text())["prefixes"]["en-de"]
    assert prefixes == {"source": [], "target": ["__de__"]}
    # A caller who still adds it has it twice, which the model was not trained on.
    translator = ctranslate2.Translator(str(directory))
    sources, targets = sentences(corpus)
    full = [["__de__", *target] for target in targets]
    once = translator.score_batch(sources, full)
    twice = translator.score_batch([["__de__", *source] for source in sources], full)
    assert max(gaps([each.log_probs for each in once], [each.log_probs for each in twice])) > 0.01


@pytest.mark.parametrize(
    ("encoder", "expected"), [(None, (False, "<s>")), ("src", (True, "__en__")), ("tgt", (True, "__de__"))]
)
def test_the_token_that_is_put_in_is_the_one_of_the_training(
    corpus: Corpus, full: Path, tmp_path: Path, encoder: str | None, expected: tuple[bool, str]
) -> None:
    def change(state: Any) -> None:
        state["cfg"]["task"].encoder_langtok = encoder
        state["cfg"]["task"].langtoks = None

    path = rewrite(full, tmp_path / "changed.pt", change)
    directory = extract(corpus, path, tmp_path, "en-de", "--format", "ctranslate2")
    config = json.loads((directory / "config.json").read_text())
    assert (config["add_source_bos"], config["bos_token"]) == expected
