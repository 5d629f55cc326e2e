"""Validation data is read by as many processes in the tenth validation as in the first."""

from __future__ import annotations

import gc
from multiprocessing import active_children

from tests.helpers.corpus import Corpus
from tests.helpers.tasks import batches, make_task


def test_processes_that_read_for_one_validation_end_when_the_next_begins(corpus: Corpus) -> None:
    task = make_task(corpus)
    before = set(active_children())
    gc.disable()
    try:
        read = [[batch["id"].tolist() for batch in batches(task, "valid", num_workers=1)] for _ in range(3)]
        assert read[0] == read[1] == read[2] != []
        assert len(set(active_children()) - before) <= 1
    finally:
        gc.enable()


def test_other_batches_of_the_same_data_are_read_anew(corpus: Corpus) -> None:
    task = make_task(corpus)
    sizes = [max(batch["nsentences"] for batch in batches(task, "valid", max_sentences=size)) for size in (8, 4, 8)]
    assert sizes == [8, 4, 8]
