"""Every row of every batch carries the ids of its own languages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fairseq import tasks
from fairseq.data import FairseqDataset, data_utils
from torch.utils.data import DataLoader

from taskmoe_plugin.tasks.language_ids import LanguageIdDataset, complete_language_ids
from tests.helpers.corpus import LANGS, Corpus
from tests.helpers.models import dictionary
from tests.helpers.tasks import batches, language, make_args, make_task, words

IDS = {lang: index for index, lang in enumerate(LANGS, 1)}


def check_rows(task: Any, batch: dict[str, Any]) -> set[tuple[str, str]]:
    """Compare each row's ids with the languages of its words; returns the pairs that were met."""
    net_input, met = batch["net_input"], set()
    for name in ("src_lang_id", "tgt_lang_id"):
        assert net_input[name].dtype == torch.int64
        assert net_input[name].shape == (batch["nsentences"],)
    for row, tokens in enumerate(net_input["src_tokens"]):
        source = [word for word in words(task, tokens) if not word.startswith(("__", "<", "["))]
        target = [word for word in words(task, batch["target"][row]) if not word.startswith(("__", "<", "["))]
        pair = language(source[0]), language(target[0])
        assert (net_input["src_lang_id"][row].item(), net_input["tgt_lang_id"][row].item()) == tuple(map(IDS.get, pair))
        met.add(pair)
    return met


FLAGS = {
    "defaults": (),
    "temperature": ("--sampling-method", "temperature", "--sampling-temperature", 5),
    "uniform": ("--sampling-method", "uniform"),
    "round robin": ("--sampling-method", "RoundRobin"),
    "virtual epochs": ("--virtual-epoch-size", 50, "--virtual-data-size", 200),
    "right padding": ("--left-pad-source", "False"),
    "left-padded target": ("--left-pad-target", "True"),
    "replacing eos": ("--lang-tok-replacing-bos-eos",),
    "batch ids": ("--enable-lang-ids",),
    "source token": ("--encoder-langtok", "src"),
    "mbart style": ("--lang-tok-style", "mbart"),
    "shared directions": ("--enable-reservsed-directions-shared-datasets",),
}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize("split", ["train", "valid"])
def test_rows_of_mixed_batches_carry_their_own_ids(corpus: Corpus, flags: tuple, split: str) -> None:
    task = make_task(corpus, *flags)
    met = [check_rows(task, complete_language_ids(batch)) for batch in batches(task, split)]
    assert len(set.union(*met)) == 5
    assert max(map(len, met)) > 2  # batches do mix pairs


def test_rows_carry_their_own_ids_when_workers_load_them(corpus: Corpus) -> None:
    task = make_task(corpus)
    task.load_dataset("train")
    data = task.datasets["train"]
    sampler = task.create_batch_sampler_func(None, False, None, max_sentences=8)(data, epoch=1)
    rows = 0
    for batch in DataLoader(data, batch_sampler=sampler, collate_fn=data.collater, num_workers=2):
        check_rows(task, batch)
        rows += batch["nsentences"]
    assert rows == 2 * 61 + 2 * 37 + 19


def test_a_batch_keeps_the_rows_their_numbers_in_the_data(corpus: Corpus) -> None:
    task = make_task(corpus)
    task.load_dataset("valid")
    lines = {
        (source, target): corpus.lines("valid", source, target, source)
        for source, target in (("en", "de"), ("de", "en"), ("en", "fr"), ("fr", "en"), ("de", "fr"))
    }
    for batch in batches(task, "valid"):
        ids = zip(batch["net_input"]["src_lang_id"].tolist(), batch["net_input"]["tgt_lang_id"].tolist())
        for row, (number, (source, target)) in enumerate(zip(batch["id"].tolist(), ids)):
            text = words(task, batch["net_input"]["src_tokens"][row])[1:-1]
            assert " ".join(text) == lines[LANGS[source - 1], LANGS[target - 1]][number]


@pytest.mark.parametrize("shards", [2, 5])
def test_the_filler_batch_of_an_uneven_shard_is_empty(corpus: Corpus, shards: int) -> None:
    task = make_task(corpus)
    met = [list(batches(task, "valid", num_shards=shards, shard_id=shard)) for shard in range(shards)]
    assert len({len(each) for each in met}) == 1
    rows = [batch["nsentences"] for each in met for batch in each if batch]
    fillers = [batch for each in met for batch in each if not batch]
    assert sum(rows) == 2 * 13 + 2 * 11 + 5
    assert len(fillers) == -len(rows) % shards
    for batch in fillers:
        assert complete_language_ids(batch) is batch


def test_extra_training_data_carries_ids_and_is_routed(corpus: Corpus) -> None:
    task = make_task(
        corpus, "--extra-data", repr({"mined": str(corpus.bin)}), "--extra-lang-pairs", repr({"mined": "fr-de,en-de"}),
        "--langtoks", repr({"mined": ("tgt", "tgt")}),
    )  # fmt: skip
    assert task.routed_pairs == [*task.lang_pairs, "fr-de"]
    met = set.union(*(check_rows(task, batch) for batch in batches(task, "train")))
    assert ("fr", "de") in met
    assert len(met) == 6
    # Validation knows the main pairs alone.
    assert ("fr", "de") not in set.union(*(check_rows(task, batch) for batch in batches(task, "valid")))


@pytest.mark.parametrize("by_file", [True, False], ids=["lang-dict", "langs"])
def test_ids_follow_the_order_of_the_languages_given(corpus: Corpus, tmp_path, by_file: bool) -> None:
    (tmp_path / "langs.txt").write_text("fr\nen\nde\n")
    args = make_args(corpus, "--langs", "fr,en,de")
    if by_file:
        args.langs, args.lang_dict = None, str(tmp_path / "langs.txt")
    task = tasks.setup_task(args)
    assert task.langs == ["fr", "en", "de"]
    (first, *_) = batches(task, "test")
    ids = first["net_input"]["src_lang_id"].tolist()
    sources = [language(words(task, tokens)[1]) for tokens in first["net_input"]["src_tokens"]]
    assert ids == [["fr", "en", "de"].index(lang) + 1 for lang in sources]


def test_pairs_may_come_from_a_file(corpus: Corpus, tmp_path) -> None:
    (tmp_path / "pairs.txt").write_text("en-de,fr-en")
    assert make_task(corpus, "--lang-pairs", tmp_path / "pairs.txt").lang_pairs == ["en-de", "fr-en"]


def test_a_batch_without_ids_gets_those_of_the_pair_that_is_translated() -> None:
    tokens = torch.ones(3, 4, dtype=torch.int64)
    sample = {"net_input": {"src_tokens": tokens}}
    completed = complete_language_ids(sample, (2, 3))["net_input"]
    assert completed["src_lang_id"].tolist() == [2, 2, 2]
    assert completed["tgt_lang_id"].tolist() == [3, 3, 3]
    assert "src_lang_id" not in sample["net_input"]
    assert complete_language_ids(sample) == sample
    already = {"net_input": {"src_tokens": tokens, "src_lang_id": tokens[:, 0], "tgt_lang_id": tokens[:, 0]}}
    assert complete_language_ids(already, (2, 3)) is already


@pytest.mark.parametrize("left", [False, True])
def test_padding_symbols_of_the_text_are_no_padding(left: bool) -> None:
    pad, eos = dictionary().pad(), dictionary().eos()
    targets = [[5, pad, 6, eos], [pad, pad, eos], [7, pad, eos], [8, eos]]

    class Pairs(FairseqDataset):
        def collater(self, samples: list[dict[str, Any]], **kwargs: Any) -> dict[str, Any]:
            # As fairseq's, which sorts the rows.
            order = torch.tensor([3, 1, 0, 2])
            symbols = data_utils.collate_tokens([sample["target"] for sample in samples], pad, left_pad=left)[order]
            return {"id": order, "net_input": {"prev_output_tokens": symbols}, "target": symbols}

    dataset = LanguageIdDataset(Pairs(), 1, 2, pad, left)
    samples = [
        {"id": row, "target": torch.tensor(target), "src_lang_id": 1, "tgt_lang_id": 2}
        for row, target in enumerate(targets)
    ]
    padding = dataset.collater(samples)["net_input"]["target_padding"]
    assert (~padding).sum(dim=1).tolist() == [2, 3, 4, 3]
    assert padding[0].tolist() == ([True, True, False, False] if left else [False, False, True, True])
    ordinary = dataset.collater([{**sample, "target": torch.tensor([5, 6, eos])} for sample in samples])
    assert "target_padding" not in ordinary["net_input"]
