"""Every sentence of every split is in a batch, whatever --required-batch-size-multiple is."""

from __future__ import annotations

import pytest

from tests.helpers.corpus import LINES, PAIRS, Corpus
from tests.helpers.tasks import batches, make_task

TOTALS = {
    split: sum(lines[pair] if pair in lines else lines["-".join(reversed(pair.split("-")))] for pair in PAIRS)
    for split, lines in LINES.items()
}


def count(task, split: str, **iteration) -> int:
    made = list(batches(task, split, **iteration))
    limit = iteration.get("max_sentences", 8)
    assert all(0 < batch["nsentences"] <= (limit or 1000) for batch in made)
    return sum(batch["nsentences"] for batch in made)


@pytest.mark.parametrize("multiple", [1, 2, 3, 8, 64, 1000])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("method", ["concat", "RoundRobin"])
def test_every_sentence_is_in_a_batch(corpus: Corpus, split: str, multiple: int, method: str) -> None:
    task = make_task(corpus, "--sampling-method", method)
    size = {"max_sentences": None, "max_tokens": 200}
    assert count(task, split, required_batch_size_multiple=multiple, **size) == TOTALS[split]


def test_the_counts_are_no_multiples_of_8() -> None:
    assert TOTALS == {"train": 215, "valid": 53, "test": 57}


@pytest.mark.parametrize("multiple", [1, 8])
def test_a_data_set_smaller_than_the_multiple_is_kept(corpus: Corpus, multiple: int) -> None:
    task = make_task(corpus, "--source-lang", "fr", "--target-lang", "en")
    assert count(task, "test", required_batch_size_multiple=multiple) == 3


@pytest.mark.parametrize("method", ["concat", "RoundRobin"])
def test_every_epoch_has_every_sentence(corpus: Corpus, method: str) -> None:
    task = make_task(corpus, "--sampling-method", method)
    task.load_dataset("train")
    iterator = task.get_batch_iterator(
        task.datasets["train"], max_sentences=9, required_batch_size_multiple=8, num_shards=1
    )
    for _ in range(3):
        assert sum(batch["nsentences"] for batch in iterator.next_epoch_itr(shuffle=True)) == TOTALS["train"]


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_share_every_sentence_out(corpus: Corpus, shards: int) -> None:
    task = make_task(corpus)
    found = [
        (row.item(), *pair)
        for shard in range(shards)
        for batch in batches(task, "valid", required_batch_size_multiple=8, num_shards=shards, shard_id=shard)
        if batch
        for row, *pair in zip(
            batch["id"], batch["net_input"]["src_lang_id"].tolist(), batch["net_input"]["tgt_lang_id"].tolist()
        )
    ]
    assert len(found) == len(set(found)) == TOTALS["valid"]


def test_sentences_that_are_too_long_are_left_out_only_if_asked(corpus: Corpus) -> None:
    task = make_task(corpus)
    short = {"max_positions": (5, 5), "required_batch_size_multiple": 8}
    with pytest.raises(Exception, match=r"sentence 11: has 6, 6 pieces"):
        count(task, "valid", **short)
    left = count(task, "valid", ignore_invalid_inputs=True, **short)
    assert 0 < left < TOTALS["valid"]


def test_the_stock_task_loses_sentences(corpus: Corpus) -> None:
    """If this fails, fairseq has changed and our own way of cutting batches may go."""
    stock = make_task(corpus, "--task", "translation_multi_simple_epoch")
    assert count(stock, "test", required_batch_size_multiple=8) < TOTALS["test"]
