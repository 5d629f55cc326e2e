"""The share of the training tokens that each pair has, as the gates are told at the start of an epoch."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.corpus import LANGS, PAIRS, Corpus
from tests.helpers.tasks import make_task

IDS = {lang: index for index, lang in enumerate(LANGS, 1)}
Counts = dict[tuple[int, int], tuple[int, int]]


class Listener:
    """Stands in for a model."""

    def set_training_tokens(self, pair_tokens: Counts) -> None:
        self.heard = pair_tokens


def told(task: Any, epoch: int = 1) -> dict[str, tuple[int, int]]:
    """Source and target tokens of each pair, as the model is told."""
    if "train" not in task.datasets:
        task.load_dataset("train")
    model = Listener()
    task.begin_epoch(epoch, model)
    return {f"{LANGS[source - 1]}-{LANGS[target - 1]}": counts for (source, target), counts in model.heard.items()}


def in_the_data(corpus: Corpus, pair: str) -> tuple[int, int]:
    """Words, language tokens and ends of sentence on both sides of a pair."""
    source, target = pair.split("-")
    return tuple(sum(len(line.split()) + 2 for line in corpus.lines("train", source, target, lang))
                 for lang in (source, target))  # fmt: skip


def test_tokens_are_counted_on_both_sides(corpus: Corpus) -> None:
    assert told(make_task(corpus)) == {pair: in_the_data(corpus, pair) for pair in PAIRS}


@pytest.mark.parametrize("method", ["RoundRobin", "concat"])
def test_methods_that_do_not_sample_count_the_data(corpus: Corpus, method: str) -> None:
    task = make_task(corpus, "--sampling-method", method)
    assert told(task) == {pair: in_the_data(corpus, pair) for pair in PAIRS}


def test_sampling_counts_what_is_sampled(corpus: Corpus) -> None:
    shares = {}
    for method in ("concat", "temperature", "uniform"):
        tokens = told(make_task(corpus, "--sampling-method", method, "--sampling-temperature", 3))
        shares[method] = tokens["de-fr"][0] / sum(source for source, _ in tokens.values())
    lengths = in_the_data(corpus, "de-fr")[0] / 19
    assert shares["concat"] < shares["temperature"] < shares["uniform"]
    assert shares["uniform"] == pytest.approx(0.2, abs=0.05)
    assert 3 < lengths < 10


def test_virtual_epochs_are_counted(corpus: Corpus) -> None:
    tokens = told(make_task(corpus, "--virtual-epoch-size", 40, "--virtual-data-size", 160))
    assert tokens.keys() == set(PAIRS)
    assert all(source > 0 and target > 0 for source, target in tokens.values())


def test_extra_data_adds_to_its_pairs(corpus: Corpus) -> None:
    task = make_task(
        corpus, "--extra-data", repr({"mined": str(corpus.bin)}), "--extra-lang-pairs", repr({"mined": "fr-de,en-de"}),
        "--langtoks", repr({"mined": ("tgt", "tgt")}),
    )  # fmt: skip
    tokens = told(task)
    assert tokens["fr-de"] == in_the_data(corpus, "de-fr")[::-1]
    assert tokens["en-de"] == tuple(2 * count for count in in_the_data(corpus, "en-de"))
    assert tokens["en-fr"] == in_the_data(corpus, "en-fr")
