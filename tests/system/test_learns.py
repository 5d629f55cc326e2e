"""Models that must learn: after a minute or two of training they must translate better than a stated BLEU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sacrebleu import corpus_bleu

from tests.helpers import numbers
from tests.helpers.commands import USER_DIR, run
from tests.helpers.corpus import Corpus
from tests.helpers.numbers import binarize_pieces, write_numbers

SHARED_TEXT = Path(__file__).parents[3] / "shared" / "data" / "multi30k"


def flags(corpus: Corpus, langs: Sequence[str], pairs: Sequence[str], *more: Any) -> list[Any]:
    return [
        corpus.bin, "--user-dir", USER_DIR, "--task", "taskmoe_translation", "--langs", ",".join(langs),
        "--lang-pairs", ",".join(pairs), "--cpu", "--num-workers", 0, *more,
    ]  # fmt: skip


def fit(common: list[Any], save_dir: Path, *more: Any) -> Path:
    """Train on all pairs; returns the checkpoint."""
    run(
        "train", *common, "--save-dir", save_dir, "--arch", "taskmoe_transformer_tiny", "--encoder-layers", 2,
        "--decoder-layers", 2, "--encoder-normalize-before", "--decoder-normalize-before", "--share-all-embeddings",
        "--criterion", "taskmoe_label_smoothed_cross_entropy", "--label-smoothing", 0.1, "--optimizer", "adam",
        "--adam-betas", "(0.9,0.98)", "--lr-scheduler", "inverse_sqrt", "--clip-norm", 1.0, "--dropout", 0,
        "--max-tokens", 1000, "--no-epoch-checkpoints", "--disable-validation", *more,
    )  # fmt: skip
    return save_dir / "checkpoint_last.pt"


def bleu(corpus: Corpus, common: list[Any], path: Path, pairs: Sequence[str], *more: Any) -> dict[str, float]:
    """BLEU of every pair over the whole test set."""
    scores = {}
    for pair in pairs:
        source, target = pair.split("-")
        output = run(
            "generate", *common, "--source-lang", source, "--target-lang", target, "--path", path, "--beam", 2,
            "--max-len-b", 60, "--max-tokens", 4000, "--remove-bpe", "sentencepiece", *more,
        )  # fmt: skip
        references = (corpus.raw / f"test.{target}").read_text(encoding="utf-8").splitlines()
        hypotheses = [text for _, (_, text) in sorted(output.hypotheses.items())]
        assert len(hypotheses) == len(references)
        scores[pair] = corpus_bleu(hypotheses, [references]).score
    return scores


def with_other_tasks(path: Path, output: Path) -> Path:
    """A copy of a checkpoint in which every task has the gate of the next one."""
    saved = torch.load(path, weights_only=True)
    for name, value in saved["model"].items():
        if name.endswith("tasks.gates.embedding"):
            saved["model"][name] = value.roll(1, dims=1)
        elif name.endswith("tasks.gates.head_start"):
            saved["model"][name] = value.roll(1, dims=0)
    torch.save(saved, output)
    return output


# Sentences with numbers in words. There are no language tokens: the gates alone know the target language.


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_numbers(tmp_path_factory.mktemp("numbers"), train=4000, test=200)


@pytest.fixture(scope="module")
def common(corpus: Corpus) -> list[Any]:
    return flags(corpus, ("en", "de", "fr"), numbers.PAIRS)


@pytest.fixture(scope="module")
def path(common: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    widths = ("--encoder-embed-dim", 64, "--encoder-ffn-embed-dim", 128,
              "--decoder-embed-dim", 64, "--decoder-ffn-embed-dim", 128)  # fmt: skip
    schedule = ("--lr", 0.005, "--warmup-updates", 100, "--max-update", 1000)
    return fit(common, tmp_path_factory.mktemp("model"), *widths, *schedule)


def test_a_model_learns_numbers_it_has_not_seen(corpus: Corpus, common: list[Any], path: Path) -> None:
    scores = bleu(corpus, common, path, numbers.PAIRS)
    # Measured: 76 to 81; translations with other numbers, and the rest right, have 46 to 47.
    assert min(scores.values()) > 55, scores
    assert sum(scores.values()) / len(scores) > 65, scores


def test_it_is_the_gates_that_know_the_language(corpus: Corpus, common: list[Any], path: Path, tmp_path: Path) -> None:
    scores = bleu(corpus, common, with_other_tasks(path, tmp_path / "other.pt"), numbers.PAIRS)
    # Measured: below 0.2.
    assert max(scores.values()) < 20, scores


@pytest.mark.skipif(not SHARED_TEXT.is_dir(), reason="the text is not part of the project")
def test_a_model_learns_real_text(tmp_path: Path) -> None:
    corpus, pairs = Corpus(tmp_path / "raw", tmp_path / "bin"), ("de-en", "fr-en")
    corpus.raw.mkdir()
    for lang in ("en", "de", "fr"):
        for split, count in (("train", 12_000), ("valid", 100), ("test", 200)):
            lines = (SHARED_TEXT / f"{split}.{lang}").read_text(encoding="utf-8").splitlines()[:count]
            (corpus.raw / f"{split}.{lang}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    binarize_pieces(corpus, ["en-de", "en-fr"], 2000)
    common = flags(corpus, ("en", "de", "fr"), pairs, "--encoder-langtok", "src", "--decoder-langtok")
    schedule = ("--lr", 0.004, "--warmup-updates", 100, "--max-update", 250, "--max-tokens", 2000)
    scores = bleu(corpus, common, fit(common, tmp_path, *schedule), pairs)
    # Measured: 12 and 14.
    assert min(scores.values()) > 6, scores
