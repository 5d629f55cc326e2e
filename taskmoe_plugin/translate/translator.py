"""Translating lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import ctranslate2
import sentencepiece

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.translate.subnets import Subnet

# CTranslate2's own limit on the length of a translation; long sentences may have twice as many pieces as their source.
SHORTEST_LIMIT = 256
PIECES_PER_PIECE = 2


@dataclass(frozen=True)
class Translation:
    """The translation of a line.

    Attributes:
        text: the translation; empty if the line is empty or was too long.
        pieces: number of pieces of the line.
        too_long: whether it has more of them than the model takes.
    """

    text: str
    pieces: int
    too_long: bool = False


class Translator:
    """Translates text with a subnet, on one device.

    Args:
        subnet: the subnet.
        beam_size: beam size; 1: greedy search.
        threads: threads that CTranslate2 computes with; 0: as many as it thinks right.
        device: cpu, cuda or auto.

    Raises:
        TaskMoEError: the subnet's files cannot be loaded.
    """

    def __init__(self, subnet: Subnet, beam_size: int = 5, threads: int = 0, device: str = "auto") -> None:
        self.subnet = subnet
        self.beam_size = beam_size
        # A source has a language token, which the model may add itself, and an end.
        self.longest = subnet.max_positions[0] - 2
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(subnet.pieces))
            self._model = ctranslate2.Translator(str(subnet.directory), device=device, intra_threads=threads)
        except (RuntimeError, OSError, ValueError) as error:
            raise TaskMoEError(
                f"{subnet.directory}: cannot be loaded ({' '.join(str(error).split())}); extract the subnet again"
            ) from error

    def translate(self, lines: Iterable[str], batch_size: int = 32) -> Iterator[Translation]:
        """Translate lines in batches, each as soon as its lines are there.

        Args:
            lines: one sentence each, in any number.
            batch_size: sentences in a batch.
        """
        left = iter(lines)
        while batch := list(islice(left, batch_size)):
            yield from self._batch(batch)

    def _batch(self, lines: Sequence[str]) -> list[Translation]:
        # fairseq, with which the model was trained, splits text at every blank of Unicode.
        sources = [" ".join(self._pieces.encode(line, out_type=str)).split() for line in lines]
        rows = [row for row, source in enumerate(sources) if 0 < len(source) <= self.longest]
        texts = dict(zip(rows, self._texts([sources[row] for row in rows])))
        return [
            Translation(texts.get(row, ""), len(source), len(source) > self.longest)
            for row, source in enumerate(sources)
        ]

    def _texts(self, sources: Sequence[list[str]]) -> list[str]:
        prefix = list(self.subnet.target_prefix)
        limit = max(SHORTEST_LIMIT, PIECES_PER_PIECE * max(map(len, sources), default=0))
        results = self._model.translate_batch(
            [[*self.subnet.source_prefix, *source] for source in sources],
            target_prefix=[prefix] * len(sources),
            beam_size=self.beam_size,
            # Longer ones were taken out: here they would be cut off without a word.
            max_input_length=0,
            max_decoding_length=min(limit, self.subnet.max_positions[1] - 1),
        )
        return [self._pieces.decode(result.hypotheses[0][len(prefix) :]) for result in results]
