"""Ways to run a model, all spoken to in pieces of text, so that models of different vocabularies can be compared.

Sentences are lists of pieces, without language tokens and sentence ends.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Protocol

import torch
from fairseq.models.transformer import TransformerModel
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from torch import Tensor, nn

from taskmoe_plugin.models import TaskMoETransformerModel
from taskmoe_plugin.models.loading import load_weights
from taskmoe_plugin.models.task_table import split_pair
from taskmoe_plugin.subnet.langtokens import prefixes
from taskmoe_plugin.tasks import TaskMoETranslationTask
from taskmoe_plugin.tasks.language_ids import complete_language_ids, padding_mask

MAX_LENGTH = 200
BATCH = 16


class Decoder(Protocol):
    """Runs a model for one language pair."""

    def translate(self, sources: Sequence[list[str]], beam: int) -> list[list[str]]:
        """The best translation of each sentence by beam search."""

    def score(self, sources: Sequence[list[str]], targets: Sequence[list[str]]) -> list[list[float]]:
        """Log-probabilities (natural) of each target's pieces and its end, given the ones before."""


def build_task(task_args: Namespace, arch: str, data: Path, pair: str) -> Any:
    """The fairseq task that runs a model of an architecture for a pair, with the dictionaries in a directory."""
    args = copy(task_args)
    args.source_lang, args.target_lang = split_pair(pair)
    args.data, args.lang_pairs = str(data), [pair]
    return (TranslationMultiSimpleEpochTask if arch == "transformer" else TaskMoETranslationTask).setup_task(args)


def build_model(model_args: Namespace, task: Any, weights: dict[str, Tensor], name: str = "the model") -> Any:
    """The fairseq model of a subnet, or the full one, ready to translate.

    Args:
        model_args: its arguments.
        task: its task.
        weights: its tensors by name.
        name: what to call it in an error.

    Raises:
        TaskMoEError: the weights do not fit.
    """
    kind = TransformerModel if model_args.arch == "transformer" else TaskMoETransformerModel
    model = kind.build_model(copy(model_args), task)
    load_weights(model, weights, name)
    return model.eval()


class FairseqDecoder:
    """Runs a fairseq model.

    Args:
        task: the task, which knows the pair.
        model: the model.
        rows: (int64) the target symbols among which log-probabilities are taken; None: all.
    """

    def __init__(self, task: Any, model: Any, rows: Tensor | None = None) -> None:
        self.task = task
        self.model = model
        self.rows = rows
        self.source_dictionary = task.source_dictionary
        self.dictionary = task.target_dictionary
        _, prefix = prefixes(task.args, f"{task.args.source_lang}-{task.args.target_lang}")
        language = [self.dictionary.index(token) for token in prefix]
        # What the decoder is given before the first piece, and how many of its own tokens come before that.
        replaced = language and task.args.lang_tok_replacing_bos_eos
        self.start = language if replaced else [self.dictionary.eos(), *language]
        self.skipped = len(self.start) - 1

    def translate(self, sources: Sequence[list[str]], beam: int) -> list[list[str]]:
        generator = self.task.build_generator([self.model], Namespace(beam=beam, max_len_a=0, max_len_b=MAX_LENGTH))
        found: dict[int, list[str]] = {}
        for rows, sample in self._batches(sources):
            for row, hypotheses in zip(rows, self.task.inference_step(generator, [self.model], sample)):
                found[row] = self._pieces(hypotheses[0]["tokens"].tolist())
        return [found[row] for row in range(len(sources))]

    @torch.no_grad()
    def score(self, sources: Sequence[list[str]], targets: Sequence[list[str]]) -> list[list[float]]:
        found: dict[int, list[float]] = {}
        for rows, sample in self._batches(sources):
            ids = [[*map(self.dictionary.index, targets[row]), self.dictionary.eos()] for row in rows]
            inputs = [torch.tensor(self.start + target[:-1]) for target in ids]
            padded = nn.utils.rnn.pad_sequence(inputs, batch_first=True, padding_value=self.dictionary.pad())
            net_input = self._encoder_input(sample)
            if isinstance(self.model, TaskMoETransformerModel):
                net_input["target_padding"] = padding_mask(torch.tensor([*map(len, inputs)]), padded.size(1))
            logits = self.model(**net_input, prev_output_tokens=padded)[0].float()
            for row, target, own in zip(rows, ids, logits[:, self.skipped :]):
                found[row] = self._log_probs(own[: len(target)], torch.tensor(target))
        return [found[row] for row in range(len(sources))]

    def _log_probs(self, logits: Tensor, target: Tensor) -> list[float]:
        rows = torch.arange(logits.size(1)) if self.rows is None else self.rows
        total = logits[:, rows].logsumexp(dim=1)
        return (logits.gather(1, target.unsqueeze(1)).squeeze(1) - total).tolist()

    def _encoder_input(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        names = ["src_tokens", "src_lengths"]
        if isinstance(self.model, TaskMoETransformerModel):
            languages = self.task.data_manager.lang_dict
            pair = languages.index(self.task.args.source_lang), languages.index(self.task.args.target_lang)
            sample = complete_language_ids(sample, pair)
            names += ["src_lang_id", "tgt_lang_id"]
        return {name: sample["net_input"][name] for name in names}

    def _batches(self, sources: Sequence[list[str]]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        eos = self.source_dictionary.eos()
        tokens = [torch.tensor([*map(self.source_dictionary.index, source), eos]) for source in sources]
        dataset = self.task.build_dataset_for_inference(tokens, [each.numel() for each in tokens])
        order = sorted(range(len(sources)), key=lambda row: len(sources[row]))
        for first in range(0, len(order), BATCH):
            sample = dataset.collater([dataset[row] for row in order[first : first + BATCH]])
            yield sample["id"].tolist(), sample

    def _pieces(self, ids: list[int]) -> list[str]:
        return [self.dictionary[each] for each in ids[self.skipped : -1]]


class CTranslate2Decoder:
    """Runs a CTranslate2 model.

    Args:
        directory: the model.
        task_args: arguments of the task that the model was trained on.
        pair: the pair to translate.
        max_positions: how many tokens a target may have, with its language token and its end.
    """

    def __init__(self, directory: Path, task_args: Namespace, pair: str, max_positions: int) -> None:
        import ctranslate2

        self.translator = ctranslate2.Translator(str(directory), device="cpu", intra_threads=torch.get_num_threads())
        # The model adds the source's own.
        _, self.target_prefix = prefixes(task_args, pair)
        self.longest = min(MAX_LENGTH, max_positions - 1)

    def translate(self, sources: Sequence[list[str]], beam: int) -> list[list[str]]:
        results = self.translator.translate_batch(
            sources,
            target_prefix=[self.target_prefix] * len(sources),
            beam_size=beam,
            max_batch_size=BATCH,
            max_input_length=0,
            max_decoding_length=self.longest,
            min_decoding_length=0,
        )
        return [result.hypotheses[0][len(self.target_prefix) :] for result in results]

    def score(self, sources: Sequence[list[str]], targets: Sequence[list[str]]) -> list[list[float]]:
        results = self.translator.score_batch(
            sources,
            [self.target_prefix + target for target in targets],
            max_input_length=0,
            max_batch_size=BATCH,
        )
        return [result.log_probs[len(self.target_prefix) :] for result in results]
