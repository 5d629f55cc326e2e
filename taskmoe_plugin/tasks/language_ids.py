"""Language ids for every sentence.

fairseq's own ``--enable-lang-ids`` stamps one id on a whole batch, which is wrong as soon as a batch mixes pairs. Here
the ids belong to the sentence: each item carries them, and the collater keeps them with their rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fairseq.data import BaseWrapperDataset, FairseqDataset
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager
from torch import Tensor

from taskmoe_plugin.errors import TaskMoEError, listed
from taskmoe_plugin.files.binarised import AGAIN, check_pieces, check_set
from taskmoe_plugin.models.task_table import split_pair

LANGUAGE_IDS = ("src_lang_id", "tgt_lang_id")


class LanguageIdDataset(BaseWrapperDataset):
    """Sentence pairs of one language pair whose items and batches carry language ids.

    A batch has ``net_input["src_lang_id"]`` and ``net_input["tgt_lang_id"]``, int64 of shape (batch,), also when its
    items come from several of these datasets. If the text has padding symbols of its own in a target, it also has
    ``net_input["target_padding"]``, bool of shape (batch, length), True at padding and False at these: their places are
    computed like those of all other symbols, as by a dense model.

    Args:
        dataset: the sentence pairs.
        src_lang_id, tgt_lang_id: its languages.
        pad: the index of padding in the target's dictionary.
        left_pad_target: whether targets are padded at their beginning.
    """

    def __init__(
        self, dataset: FairseqDataset, src_lang_id: int, tgt_lang_id: int, pad: int, left_pad_target: bool = False
    ) -> None:
        super().__init__(dataset)
        self.pad = pad
        self.left_pad_target = left_pad_target
        self.ids = dict(zip(LANGUAGE_IDS, (src_lang_id, tgt_lang_id)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], **self.ids}

    def collater(self, samples: list[dict[str, Any]], **kwargs: Any) -> dict[str, Any]:
        if not samples:
            return {}
        # fairseq sorts the rows and tells their new order by "id" alone, which several pairs may share.
        batch = self.dataset.collater([{**sample, "id": row} for row, sample in enumerate(samples)], **kwargs)
        order = batch["id"]
        batch["id"] = torch.tensor([sample["id"] for sample in samples])[order]
        for name in LANGUAGE_IDS:
            batch["net_input"][name] = torch.tensor([sample[name] for sample in samples])[order]
        if all(sample.get("target") is not None for sample in samples):
            self._add_padding(batch["net_input"], torch.tensor([len(sample["target"]) for sample in samples])[order])
        # Where collaters are not shared between pairs, fairseq keeps the target's id under this key only.
        batch["tgt_lang_id"] = batch["net_input"]["tgt_lang_id"]
        return batch  # type: ignore[no-any-return]

    def _add_padding(self, net_input: dict[str, Any], lengths: Tensor) -> None:
        symbols = net_input.get("prev_output_tokens")
        if symbols is None:
            return
        padding = padding_mask(lengths, symbols.size(1), self.left_pad_target)
        if (symbols.eq(self.pad) & ~padding).any():
            net_input["target_padding"] = padding


def padding_mask(lengths: Tensor, width: int, left: bool = False) -> Tensor:
    """(B, width) bool, True where rows of the given lengths, (B,) int64, are padded."""
    places = torch.arange(width)
    if left:
        places = places.flip(0)
    return places >= lengths.unsqueeze(1)


class CheckedDataset(BaseWrapperDataset):
    """One language's sentences, each of which is looked at for pieces that the dictionary lacks.

    Args:
        dataset: sentences as tensors (length,) int64.
        prefix: the path of its files without their suffixes.
        pieces: how many the dictionary has.
    """

    def __init__(self, dataset: Any, prefix: str, pieces: int) -> None:
        super().__init__(dataset)
        self.prefix = prefix
        self.pieces = pieces

    def __getitem__(self, index: int) -> Any:
        sentence = self.dataset[index]
        check_pieces(self.prefix, int(sentence.max()), self.pieces)
        return sentence


class LanguageIdDatasetManager(MultilingualDatasetManager):
    """fairseq's data manager, with language ids on every item it loads; damaged files are named."""

    @classmethod
    def split_exists(cls, split: str, src: str, tgt: str, lang: str, data_path: str, dataset_impl: str | None) -> bool:
        # A set of which one file is missing does not exist for fairseq, which then names none.
        check_set(str(Path(data_path, f"{split}.{src}-{tgt}.{lang}")))
        return super().split_exists(split, src, tgt, lang, data_path, dataset_impl)  # type: ignore[no-any-return]

    @classmethod
    def load_data(cls, path: str, vdict: Any, impl: str | None) -> Any:
        check_set(path)
        dataset = super().load_data(path, vdict, impl)
        if dataset is None:
            raise TaskMoEError(f"{path}.idx: no such file, although the set has another language; {AGAIN}")
        return CheckedDataset(dataset, path, len(vdict))

    def load_a_dataset(self, *, src: str, tgt: str, **kwargs: Any) -> LanguageIdDataset:
        try:
            dataset = super().load_a_dataset(src=src, tgt=tgt, **kwargs)
        except AssertionError as error:
            impl = self.args.dataset_impl
            remedy = f"leave --dataset-impl {impl} out" if impl else AGAIN
            text = str(error).rstrip(".")
            raise TaskMoEError(f"{self.args.data}: the data of {src}-{tgt}: {text}; {remedy}") from error
        pad = self.get_target_dictionary(tgt).pad()
        ids = self.lang_dict.index(src), self.lang_dict.index(tgt)
        return LanguageIdDataset(dataset, *ids, pad, self.args.left_pad_target)

    def missing_data(self, split: str) -> list[str]:
        """What is wrong with the pairs whose data directories, or whose kind's, have no such split."""
        known = self.get_split_num_data_shards(split)
        paths, pairs_of = self.get_data_paths_and_lang_pairs(split)
        problems = []
        for kind, pairs in pairs_of.items():
            missing = [pair for pair in pairs if self.get_dataset_key(kind, *split_pair(pair)) not in known]
            if missing and kind not in paths:
                problems.append(f"--extra-lang-pairs: names pairs of {kind}, of which --extra-data names no directory")
            elif missing:
                flag = "--lang-pairs" if kind == "main" else "--extra-lang-pairs"
                problems.append(
                    f"{paths[kind]}: no {split} data for {listed(missing)}; "
                    f"run fairseq-preprocess for it, or leave the pair out of {flag}"
                )
        return problems


def complete_language_ids(sample: dict[str, Any], pair: tuple[int, int] | None = None) -> dict[str, Any]:
    """The sample with both language ids in ``net_input``.

    Args:
        sample: a batch; its rows may lack the ids (``fairseq-interactive`` builds its own).
        pair: the language ids of rows that lack them, None if unknown.

    Returns:
        The sample itself if it has the ids, or is empty, or nothing is known; else a copy of it.
    """
    if not sample or all(name in sample["net_input"] for name in LANGUAGE_IDS):
        return sample
    net_input = dict(sample["net_input"])
    if "tgt_lang_id" in sample and "src_lang_id" in net_input:
        net_input["tgt_lang_id"] = sample["tgt_lang_id"]
    elif pair is not None:
        tokens = net_input["src_tokens"]
        for name, lang_id in zip(LANGUAGE_IDS, pair):
            net_input[name] = torch.full((tokens.size(0),), lang_id, device=tokens.device)
    return {**sample, "net_input": net_input}
