"""Translating raw text with converted models, in this process: its time is told without that of loading them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ctranslate2
import sentencepiece as spm
import torch
from fairseq.dataclass.configs import GenerationConfig
from fairseq_cli.generate import get_symbols_to_strip_from_output

from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.decoders import build_model, build_task
from taskmoe_plugin.subnet.fairseq_format import read_model
from text import Direction

BATCH = 64
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Translated:
    """The translations of some lines, their tokens, sentence ends included, and the seconds computed."""

    lines: list[str]
    tokens: int
    seconds: float


class Decoder(Protocol):
    """Translates a direction with one thread."""

    def translate(self, lines: Sequence[str], beam: int) -> Translated:
        """The best translation of each line by beam search."""


def make_decoder(models: Sequence[Path], work_dir: Path, direction: Direction) -> Decoder:
    """The decoder of one model, or of an ensemble of fairseq's.

    Args:
        models: files of fairseq or a directory of CTranslate2.
        work_dir: has the text's vocabulary, and the binarised data that a model which is no subnet needs.
        direction: what they translate.
    """
    pieces = spm.SentencePieceProcessor(model_file=str(work_dir / "vocabulary" / "spm.model"))
    if models[0].is_dir():
        return CTranslate2Decoder(models[0], pieces)
    return FairseqDecoder(models, work_dir / "binary", direction, pieces)


class FairseqDecoder:
    """Translates with fairseq, stock subnets with its own task.

    Args:
        models: files, of which several are an ensemble.
        binary: has the dictionaries of models that are no subnets.
        direction: what they translate.
        pieces: of their text.
    """

    def __init__(self, models: Sequence[Path], binary: Path, direction: Direction, pieces: Any) -> None:
        torch.set_num_threads(1)
        self.pieces, self.models = pieces, []
        for path in models:
            if (path.parent / "subnet.json").exists():
                data = path.parent
                args, task_args, weights = read_model(path)
            else:
                checkpoint, data = Checkpoint.open(path), binary
                args, task_args, weights = checkpoint.args, checkpoint.cfg["task"], checkpoint.tensors.all()
            self.task = build_task(task_args, args.arch, data, str(direction))
            self.models.append(build_model(args, self.task, weights))

    def translate(self, lines: Sequence[str], beam: int) -> Translated:
        generator = self.task.build_generator(self.models, GenerationConfig(beam=beam))
        stripped = get_symbols_to_strip_from_output(generator)
        words = self.task.source_dictionary
        encoded = [" ".join(self.pieces.encode(line, out_type=str)) for line in lines]
        ids = [words.encode_line(each, add_if_not_exist=False).long() for each in encoded]
        dataset = self.task.build_dataset_for_inference(ids, list(map(len, ids)))
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        found, tokens, seconds = {}, 0, 0.0
        for first in range(0, len(order), BATCH):
            batch = dataset.collater([dataset[row] for row in order[first : first + BATCH]])
            start = time.process_time()
            hypotheses = self.task.inference_step(generator, self.models, batch)
            seconds += time.process_time() - start
            for row, (best, *_) in zip(batch["id"].tolist(), hypotheses):
                tokens += len(best["tokens"])
                string = self.task.target_dictionary.string(best["tokens"], extra_symbols_to_ignore=stripped)
                found[row] = self.pieces.decode(string.split())
        return Translated([found[row] for row in range(len(ids))], tokens, seconds)


class CTranslate2Decoder:
    """Translates with CTranslate2.

    Args:
        directory: the subnet.
        pieces: of its text.
    """

    def __init__(self, directory: Path, pieces: Any) -> None:
        self.pieces = pieces
        (self.prefixes,) = json.loads((directory / "subnet.json").read_text(encoding="utf-8"))["prefixes"].values()
        self.translator = ctranslate2.Translator(str(directory), inter_threads=1, intra_threads=1)

    def translate(self, lines: Sequence[str], beam: int) -> Translated:
        prefix = self.prefixes["target"]
        sources = [self.prefixes["source"] + self.pieces.encode(line, out_type=str) for line in lines]
        start = time.process_time()
        results = self.translator.translate_batch(
            sources,
            target_prefix=[prefix] * len(sources),
            beam_size=beam,
            max_batch_size=BATCH_TOKENS,
            batch_type="tokens",
        )
        seconds = time.process_time() - start
        outputs = [result.hypotheses[0] for result in results]
        # fairseq counts the language token and the sentence's end, too.
        tokens = sum(len(each) + 1 for each in outputs)
        return Translated([self.pieces.decode(each[len(prefix) :]) for each in outputs], tokens, seconds)
