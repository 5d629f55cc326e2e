"""Dictionaries, and the pieces of them that a subnet needs."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary, data_utils, indexed_dataset
from fairseq.data.multilingual.multilingual_utils import augment_dictionary
from torch import Tensor

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.files.binarised import AGAIN, check_pieces, check_set, map_pieces
from taskmoe_plugin.files.dictionaries import read_dictionary
from taskmoe_plugin.models.task_table import split_pair
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.tasks.remembered_flags import fingerprint, trained_fingerprints

TRAINED_ON = "give the DATA_BIN that the model was trained on"


@dataclass(frozen=True)
class Vocabulary:
    """The dictionary of one side.

    Attributes:
        text: the dictionary file.
        dictionary: what fairseq makes of it: special symbols, the lines' symbols, language tokens.
        language_tokens: the tokens of all languages, those that the file has included.
    """

    text: str
    dictionary: Dictionary
    language_tokens: frozenset[str]

    @property
    def symbols(self) -> list[str]:
        """The symbol of each row of the embeddings."""
        return self.dictionary.symbols  # type: ignore[no-any-return]

    @property
    def _first(self) -> int:
        return self.dictionary.nspecial  # type: ignore[no-any-return]

    @property
    def _end(self) -> int:
        return self._first + self.text.count("\n")

    def pieces(self) -> list[str]:
        """The symbols of the file's lines: no special symbols, no language tokens that fairseq appended."""
        return self.symbols[self._first : self._end]

    def complete_text(self) -> str:
        """The dictionary file with the language tokens in it, so that fairseq need not be told of all languages."""
        return self.text + "".join(f"{symbol} 1\n" for symbol in self.symbols[self._end :])

    def kept_rows(self, used: Tensor) -> Tensor:
        """Rows, ascending, that a subnet needs of embeddings and output projection.

        Kept are the rows in use, fairseq's special symbols, language tokens, control symbols (``<…>``, SentencePiece's
        bytes among them) and single characters: every text that could be spelled still can be.

        Args:
            used: (V,) bool, the symbols that occur in the data.
        """
        keep = used.clone()
        keep[: self._first] = True
        keep[self._end :] = True
        for row, symbol in enumerate(self.pieces(), self._first):
            control = symbol in self.language_tokens or (symbol.startswith("<") and symbol.endswith(">"))
            if control or len(symbol.removesuffix("@@")) == 1:
                keep[row] = True
        return keep.nonzero().squeeze(1)

    def trimmed(self, rows: Tensor) -> Vocabulary:
        """The dictionary with only the given rows, which include all that are no line of the file."""
        kept = set(rows.tolist())
        lines = enumerate(self.text.split("\n")[:-1], self._first)
        text = "".join(f"{line}\n" for row, line in lines if row in kept)
        dictionary = _parse(text)
        for symbol in self.symbols[self._end :]:
            dictionary.add_symbol(symbol)
        return Vocabulary(text, dictionary, self.language_tokens)


@dataclass(frozen=True)
class Vocabularies:
    """The dictionaries of both sides.

    Attributes:
        source, target: the two sides.
        shared: whether both sides must have the same dictionary.
        langs: for each side, the languages it occurs with in the subnet.
    """

    source: Vocabulary
    target: Vocabulary
    shared: bool
    langs: tuple[tuple[str, ...], tuple[str, ...]]

    def keep(self, used: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The rows to keep on each side.

        Args:
            used: for each side, (V,) bool, the symbols that occur in the data.
        """
        if self.shared:
            used = (used[0] | used[1],) * 2
        return self.source.kept_rows(used[0]), self.target.kept_rows(used[1])

    def trimmed(self, rows: tuple[Tensor, Tensor]) -> Vocabularies:
        """The dictionaries with only the given rows of each side."""
        return Vocabularies(self.source.trimmed(rows[0]), self.target.trimmed(rows[1]), self.shared, self.langs)

    def write(self, directory: Path, restriction: bool) -> None:
        """Write ``dict.LANG.txt`` for every language.

        Args:
            directory: where to.
            restriction: also write ``vocabulary.LANG.txt`` with one piece on each line, which tells SentencePiece to
                use no others.
        """
        for vocabulary, langs in zip((self.source, self.target), self.langs):
            for lang in langs:
                (directory / f"dict.{lang}.txt").write_text(vocabulary.complete_text(), encoding="utf-8")
                if restriction:
                    text = "".join(f"{piece}\n" for piece in vocabulary.pieces())
                    (directory / f"vocabulary.{lang}.txt").write_text(text, encoding="utf-8")


class DictionaryReader:
    """Reads the dictionaries of a model's languages; equal ones are read once.

    Args:
        checkpoint: the model.
        data: the directories of its binarised data, of which the first has the dictionaries.
    """

    def __init__(self, checkpoint: Checkpoint, data: Sequence[Path]) -> None:
        self.checkpoint = checkpoint
        self.data = data
        self._texts: dict[Path, str] = {}
        self._known: dict[str, Vocabulary] = {}
        self._fingerprints: dict[str, str] = {}

    def read(self, pairs: Sequence[str]) -> Vocabularies:
        """The dictionaries of some pairs.

        Raises:
            TaskMoEError: a file is missing, broken or does not fit the model, or a language would need two.
        """
        sources, targets = (tuple(dict.fromkeys(side)) for side in zip(*map(split_pair, pairs)))
        both = sorted(set(sources) & set(targets))
        source, target = self._side("encoder", "source", sources), self._side("decoder", "target", targets)
        if both and source.text != target.text:
            raise TaskMoEError(
                f"--lang-pairs {'+'.join(pairs)}: {both[0]} is on both sides, whose dictionaries differ; extract the "
                "pairs one by one, with commas between them"
            )
        shared = self.checkpoint.args.share_all_embeddings
        if shared and source.text != target.text:
            raise TaskMoEError(
                f"{self.data[0]}: the dictionaries of {sources[0]} and {targets[0]} differ, and the model has one for "
                f"both; {TRAINED_ON}"
            )
        return Vocabularies(source, target, bool(both) or shared, (sources, targets))

    def _side(self, stack: str, side: str, langs: Sequence[str]) -> Vocabulary:
        task = self.checkpoint.cfg["task"]
        fixed = task.fixed_dictionary or getattr(task, f"{side}_dict")
        # One that was named in training may have moved since.
        known = fixed and Path(fixed).is_file()
        files = [Path(fixed)] if known else [self.data[0] / f"dict.{lang}.txt" for lang in langs]
        for file in files:
            if file not in self._texts:
                self._texts[file] = read_dictionary(file)
        texts = [self._texts[file] for file in files]
        for file, text in zip(files, texts):
            if text != texts[0]:
                raise TaskMoEError(f"{file}: differs from {files[0]}; all languages of a side share one dictionary")
        if texts[0] not in self._known:
            self._known[texts[0]] = self._parse(texts[0])
            self._fingerprints[texts[0]] = fingerprint(self._known[texts[0]].dictionary)
        vocabulary = self._known[texts[0]]
        rows = self.checkpoint.tensors.mapped(f"{stack}.embed_tokens.weight").size(0)
        if len(vocabulary.symbols) != rows:
            raise TaskMoEError(
                f"{files[0]}: has {len(vocabulary.symbols)} symbols with the language tokens, the checkpoint's "
                f"embeddings have {rows}; {TRAINED_ON}"
            )
        found = self._fingerprints[texts[0]]
        if trained_fingerprints(task).get(side, found) != found:
            raise TaskMoEError(f"{files[0]}: is not the dictionary that the model was trained with; {TRAINED_ON}")
        return vocabulary

    def _parse(self, text: str) -> Vocabulary:
        dictionary = _parse(text)
        tokens, task = Dictionary(add_special_symbols=False), self.checkpoint.cfg["task"]
        for each in (dictionary, tokens):
            augment_dictionary(each, self.checkpoint.langs, task.lang_tok_style, task.langtoks_specs, task.extra_data)
        return Vocabulary(text, dictionary, frozenset(tokens.symbols))


def _parse(text: str) -> Dictionary:
    dictionary = Dictionary()
    dictionary.add_from_file(StringIO(text))
    return dictionary


def open_set(prefix: str, dictionary: Dictionary) -> Any:
    """One language's half of a binarised set, a sequence of sentences: (n,) integers.

    Args:
        prefix: the path of its files without ``.idx`` and ``.bin``.
        dictionary: what it was binarised with.

    Raises:
        TaskMoEError: it is missing or damaged.
    """
    check_set(prefix)
    try:
        dataset = data_utils.load_indexed_dataset(prefix, dictionary)
    except (AssertionError, ValueError, OSError, struct.error) as error:  # of fairseq's older formats
        raise TaskMoEError(f"{prefix}.idx: damaged ({error}); {AGAIN}") from error
    if dataset is None:
        raise TaskMoEError(f"{prefix}.idx: no such file; {AGAIN}")
    return dataset


def used_symbols(
    data: Sequence[Path], pair: str, vocabularies: Vocabularies, progress: Callable[[Iterable[int]], Iterable[int]]
) -> tuple[Tensor, Tensor]:
    """Which symbols occur in the training data of a pair, (V,) bool for each side.

    Args:
        data: the binarised data's directories.
        pair: the pair.
        vocabularies: the dictionaries of both sides.
        progress: wraps the loop over the blocks of a file.

    Raises:
        TaskMoEError: there is no training data of the pair.
    """
    used = []
    for lang, vocabulary in zip(split_pair(pair), (vocabularies.source, vocabularies.target)):
        seen = np.zeros(len(vocabulary.symbols), dtype=bool)
        for prefix in train_files(data, pair, lang):
            # Of fairseq's older formats a block is a sentence.
            blocks = map_pieces(prefix) or open_set(prefix, vocabulary.dictionary)
            for index in progress(range(len(blocks))):
                pieces = np.asarray(blocks[index])
                check_pieces(prefix, int(pieces.max()), len(seen))
                seen[pieces] = True
        used.append(torch.from_numpy(seen))
    return used[0], used[1]


def train_files(data: Sequence[Path], pair: str, lang: str) -> list[str]:
    """The paths of one language's half of a pair's training data, without their suffixes.

    Raises:
        TaskMoEError: there is none.
    """
    source, target = split_pair(pair)
    found = []
    for directory in data:
        for number in count():
            split = f"train{number or ''}"
            names = [f"{split}.{source}-{target}.{lang}", f"{split}.{target}-{source}.{lang}"]
            existing = [name for name in names if indexed_dataset.dataset_exists(str(directory / name), impl=None)]
            if not existing:
                break
            found.append(str(directory / existing[0]))
    if not found:
        raise TaskMoEError(
            f"{data[0]}: no training data of {pair} (train.{pair}.{lang}.bin), which --trim-vocabulary needs; "
            "leave it out"
        )
    return found
