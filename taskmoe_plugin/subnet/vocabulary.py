"""Dictionaries, and the pieces of them that a subnet needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import count
from pathlib import Path

import torch
from fairseq.data import Dictionary, data_utils, indexed_dataset
from fairseq.data.multilingual.multilingual_utils import augment_dictionary
from torch import Tensor

from taskmoe_plugin.models.task_table import split_pair
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.errors import SubnetError


@dataclass(frozen=True)
class Vocabulary:
    """The dictionary of one side.

    Attributes:
        path: the file that it was read from.
        lines: the lines of the file.
        dictionary: what fairseq makes of them: special symbols, the lines' symbols, language tokens.
        language_tokens: the tokens of all languages, those that the file has included.
    """

    path: Path
    lines: tuple[str, ...]
    dictionary: Dictionary
    language_tokens: frozenset[str]

    @property
    def symbols(self) -> list[str]:
        """The symbol of each row of the embeddings."""
        return self.dictionary.symbols  # type: ignore[no-any-return]

    @property
    def _first(self) -> int:
        return self.dictionary.nspecial  # type: ignore[no-any-return]

    def pieces(self) -> list[str]:
        """The symbols of the file's lines: no special symbols, no language tokens that fairseq appended."""
        return self.symbols[self._first : self._first + len(self.lines)]

    def kept_rows(self, used: Tensor) -> Tensor:
        """Rows, ascending, that a subnet needs of embeddings and output projection.

        Kept are the rows in use, fairseq's special symbols, language tokens, control symbols (``<…>``, SentencePiece's
        bytes among them) and single characters: every text that could be spelled still can be.

        Args:
            used: (V,) bool, the symbols that occur in the data.
        """
        keep = used.clone()
        keep[: self._first] = True
        keep[self._first + len(self.lines) :] = True
        for row, symbol in enumerate(self.pieces(), self._first):
            control = symbol in self.language_tokens or (symbol.startswith("<") and symbol.endswith(">"))
            if control or len(symbol.removesuffix("@@")) == 1:
                keep[row] = True
        return keep.nonzero().squeeze(1)

    def trimmed(self, rows: Tensor) -> Vocabulary:
        """The dictionary with only the given rows, which include all that are no line of the file."""
        kept = set(rows.tolist())
        lines = tuple(line for row, line in enumerate(self.lines, self._first) if row in kept)
        dictionary = _parse(lines)
        for symbol in self.symbols[self._first + len(self.lines) :]:
            dictionary.add_symbol(symbol)
        return Vocabulary(self.path, lines, dictionary, self.language_tokens)

    def write(self, path: Path) -> None:
        """Write a file that ``Dictionary.load`` reads."""
        path.write_text("".join(f"{line}\n" for line in self.lines), encoding="utf-8")


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

    @classmethod
    def load(cls, checkpoint: Checkpoint, data: Sequence[Path], pairs: Iterable[str]) -> Vocabularies:
        """The dictionaries of some pairs.

        Raises:
            SubnetError: a file is missing, broken or does not fit the model.
        """
        langs = tuple(tuple(dict.fromkeys(side)) for side in zip(*map(split_pair, pairs)))
        args = checkpoint.args
        shared = args.share_all_embeddings or bool(set(langs[0]) & set(langs[1]))
        sides = []
        for side, tensor in ((0, "encoder.embed_tokens.weight"), (1, "decoder.embed_tokens.weight")):
            rows = checkpoint.tensors.mapped(tensor).size(0)
            found = [_load(checkpoint, path, rows) for path in _paths(checkpoint, data, langs[side], side)]
            if any(other.symbols != found[0].symbols for other in found):
                raise SubnetError(f"{found[0].path}: differs from {found[-1].path}; all languages of a side share one")
            sides.append(found[0])
        return cls(sides[0], sides[1], shared, (langs[0], langs[1]))

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
                vocabulary.write(directory / f"dict.{lang}.txt")
                if restriction:
                    text = "".join(f"{piece}\n" for piece in vocabulary.pieces())
                    (directory / f"vocabulary.{lang}.txt").write_text(text, encoding="utf-8")


def _paths(checkpoint: Checkpoint, data: Sequence[Path], langs: Iterable[str], side: int) -> list[Path]:
    task = checkpoint.cfg["task"]
    fixed = task.fixed_dictionary or (task.source_dict, task.target_dict)[side]
    return [Path(fixed)] if fixed else [data[0] / f"dict.{lang}.txt" for lang in langs]


def _parse(lines: Sequence[str]) -> Dictionary:
    dictionary = Dictionary()
    dictionary.add_from_file(StringIO("".join(f"{line}\n" for line in lines)))
    return dictionary


def _load(checkpoint: Checkpoint, path: Path, rows: int) -> Vocabulary:
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        dictionary = _parse(lines)
    except FileNotFoundError:
        raise SubnetError(f"{path}: no such file; give the DATA_BIN that the model was trained on") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise SubnetError(f"{path}: no fairseq dictionary ({' '.join(str(error).split())})") from None
    tokens = Dictionary(add_special_symbols=False)
    task = checkpoint.cfg["task"]
    for each in (dictionary, tokens):
        augment_dictionary(each, checkpoint.langs, task.lang_tok_style, task.langtoks_specs, task.extra_data)
    if len(dictionary) != rows:
        raise SubnetError(
            f"{path}: has {len(dictionary)} symbols with the language tokens, the checkpoint's embeddings have {rows}; "
            "give the DATA_BIN that the model was trained on"
        )
    return Vocabulary(path, tuple(lines), dictionary, frozenset(tokens.symbols))


def used_symbols(
    data: Sequence[Path], pair: str, vocabularies: Vocabularies, progress: Callable[[Iterable[int]], Iterable[int]]
) -> tuple[Tensor, Tensor]:
    """Which symbols occur in the training data of a pair, (V,) bool for each side.

    Args:
        data: the binarised data's directories.
        pair: the pair.
        vocabularies: the dictionaries of both sides.
        progress: wraps the loop over the sentences of a file.

    Raises:
        SubnetError: there is no training data of the pair.
    """
    used = []
    for lang, vocabulary in zip(split_pair(pair), (vocabularies.source, vocabularies.target)):
        seen = torch.zeros(len(vocabulary.symbols), dtype=torch.bool)
        for prefix in _train_files(data, pair, lang):
            dataset = data_utils.load_indexed_dataset(prefix, vocabulary.dictionary)
            for index in progress(range(len(dataset))):
                seen[dataset[index].long()] = True
        used.append(seen)
    return used[0], used[1]


def _train_files(data: Sequence[Path], pair: str, lang: str) -> list[str]:
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
        raise SubnetError(
            f"{data[0]}: no training data of {pair} (train.{pair}.{lang}.bin), which --trim-vocabulary needs"
        )
    return found
