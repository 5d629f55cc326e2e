"""Running a model over the sentences of a binarised set and their references, pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.decoders import FairseqDecoder, build_model, build_task
from taskmoe_plugin.subnet.verify import read_sentences
from taskmoe_plugin.subnet.vocabulary import DictionaryReader

AT_ONCE = 256  # sentences


class References:
    """A model, and sentence pairs to run it over.

    Args:
        checkpoint: the model.
        data: the directories of the binarised data.
        pairs: the language pairs.
        subset: the set that the sentences are from, e.g. valid.
        count: sentences of each pair, evenly spaced; None: all.

    Attributes:
        model: the model, in evaluation mode.

    Raises:
        TaskMoEError: a pair has no such set, or one that the model can take no sentence of, or the data's dictionaries
            do not fit the model.
    """

    def __init__(
        self, checkpoint: Checkpoint, data: Sequence[Path], pairs: Sequence[str], subset: str, count: int | None
    ) -> None:
        reader = DictionaryReader(checkpoint, data)
        self._sentences = {
            pair: read_sentences(data, subset, pair, reader.read([pair]), count, checkpoint.args) for pair in pairs
        }
        self._checkpoint = checkpoint
        self._data = data[0]
        self._subset = subset
        self.model: Any = build_model(checkpoint.args, self._task(pairs[0]), checkpoint.tensors.all(), checkpoint.name)

    def _task(self, pair: str) -> Any:
        # With dictionaries of its own, so that those of hundreds of pairs are not kept.
        return build_task(self._checkpoint.cfg["task"], self._checkpoint.args.arch, self._data, pair)

    def run(self, pair: str) -> None:
        """Run the model over the sentences of a pair, given their references, with a bar of progress on a terminal."""
        decoder, each = FairseqDecoder(self._task(pair), self.model), self._sentences[pair]
        with tqdm(
            total=len(each), desc=f"{self._subset} {pair}", unit=" sentences", delay=1, leave=False, disable=None
        ) as bar:
            for first in range(0, len(each), AT_ONCE):
                part = slice(first, first + AT_ONCE)
                decoder.score(each.sources[part], each.targets[part])
                bar.update(len(each.sources[part]))
