"""A subnet against the full model, on sentences of the test set."""

from __future__ import annotations

import logging
import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq.data import indexed_dataset

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.files.binarised import AGAIN, check_pieces
from taskmoe_plugin.models.task_table import split_pair
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.decoders import CTranslate2Decoder, Decoder, FairseqDecoder, build_model, build_task
from taskmoe_plugin.subnet.fairseq_format import read_model
from taskmoe_plugin.subnet.vocabulary import Vocabularies, Vocabulary, open_set

logger = logging.getLogger(__name__)

SCORE_LIMIT = 1e-4
# A subnet whose weights were rounded to half precision or quantised differs from the full model a little.
ROUNDED_SCORE_LIMIT = 0.1


@dataclass(frozen=True)
class Sentences:
    """Sentences of both sides, as lists of pieces."""

    sources: list[list[str]]
    targets: list[list[str]]

    def __len__(self) -> int:
        return len(self.sources)

    def no_longer_than(self, source: int, target: int) -> Sentences:
        """The sentence pairs of at most so many pieces."""
        return self._of(lambda *pair: len(pair[0]) <= source and len(pair[1]) <= target)

    def within(self, vocabularies: Vocabularies) -> Sentences:
        """The sentence pairs that the vocabularies have every piece of."""
        known = set(vocabularies.source.symbols), set(vocabularies.target.symbols)
        return self._of(lambda source, target: known[0].issuperset(source) and known[1].issuperset(target))

    def _of(self, is_kept: Callable[[list[str], list[str]], bool]) -> Sentences:
        kept = [pair for pair in zip(self.sources, self.targets) if is_kept(*pair)]
        return Sentences([source for source, _ in kept], [target for _, target in kept])


@dataclass(frozen=True)
class Agreement:
    """How far a subnet and the full model agree.

    Attributes:
        sentences: number of sentences that were translated.
        tied: those whose translations differ, but which the full model finds equally good.
        different: the others whose translations differ: number in the sample, full model's, subnet's.
        scored: number of sentence pairs whose tokens were scored.
        left_out: number of sentence pairs that have pieces which the subnet lacks.
        largest, mean: difference of log-probabilities (natural) of the references' tokens.
    """

    sentences: int
    tied: int
    different: list[tuple[int, str, str]]
    scored: int
    left_out: int
    largest: float
    mean: float

    def __str__(self) -> str:
        equal = self.sentences - self.tied - len(self.different)
        hypotheses = f"{equal} of {self.sentences} hypotheses equal, " if self.sentences else ""
        tied = f"{self.tied} equally good, " if self.tied else ""
        left_out = f" ({self.left_out} more have pieces that were trimmed)" if self.left_out else ""
        return (
            f"{hypotheses}{tied}scores of {self.scored} references differ by at most {self.largest:.1e} "
            f"a token, {self.mean:.1e} on average{left_out}"
        )


class Verifier:
    """Compares subnets with the full model, which is loaded when first needed and kept.

    Args:
        checkpoint: the full model.
        data: the directories of the binarised data.
        subset: the set that the sentences are from, e.g. test.
    """

    def __init__(self, checkpoint: Checkpoint, data: Sequence[Path], subset: str) -> None:
        self.checkpoint = checkpoint
        self.data = data
        self.subset = subset
        self._model: Any = None

    def verify(
        self, directory: Path, full: Vocabularies, kept: Vocabularies, pair: str, count: int | None, rounded: bool
    ) -> str:
        """Compare the subnet in a directory with the full model.

        With a trimmed vocabulary only references made of kept pieces are scored, by both models over these pieces
        alone, and nothing is translated: among fewer pieces a search may find something else.

        Args:
            directory: the subnet.
            full, kept: the dictionaries of the full model and of the subnet.
            pair: the pair.
            count: number of sentences; None: all.
            rounded: whether the subnet's weights were rounded, so that only gross differences are an error.

        Returns:
            How far they agree, in words.

        Raises:
            TaskMoEError: the subnet differs from the full model, or there are no sentences.
        """
        sentences = read_sentences(self.data, self.subset, pair, full, count, self.checkpoint.args)
        sides = (kept.source, full.source), (kept.target, full.target)
        trimmed = any(len(ours.symbols) < len(whole.symbols) for ours, whole in sides)
        rows = torch.tensor([full.target.dictionary.index(each) for each in kept.target.symbols]) if trimmed else None
        subnet, exact_beam = _open(directory, self.checkpoint, pair)
        model = FairseqDecoder(self._task(pair), self._full_model(pair), rows)
        beam = None if trimmed else exact_beam
        agreement = compare(pair, model, subnet, sentences, sentences.within(kept), beam)
        _check(pair, agreement, rounded)
        return str(agreement)

    def _task(self, pair: str) -> Any:
        return build_task(self.checkpoint.cfg["task"], self.checkpoint.args.arch, self.data[0], pair)

    def _full_model(self, pair: str) -> Any:
        if self._model is None:
            tensors = self.checkpoint.tensors
            weights = tensors.all()
            self._model = build_model(self.checkpoint.args, self._task(pair), weights, self.checkpoint.name)
        return self._model


def _open(directory: Path, checkpoint: Checkpoint, pair: str) -> tuple[Decoder, int]:
    """A decoder, and the beam size with which it searches as fairseq does."""
    path = directory / "model.pt"
    if not path.exists():
        # The two rank finished hypotheses of a beam in different ways.
        return CTranslate2Decoder(directory, checkpoint.cfg["task"], pair, checkpoint.args.max_target_positions), 1
    args, task_args, weights = read_model(path)
    task = build_task(task_args, args.arch, directory, pair)
    return FairseqDecoder(task, build_model(args, task, weights, str(path))), 5


def compare(
    name: str, full: Decoder, subnet: Decoder, sentences: Sentences, scored: Sentences, beam: int | None
) -> Agreement:
    """Translate sentences and score references with both models.

    Args:
        name: the subnet, to name in an error.
        full: the full model.
        subnet: the subnet.
        sentences: what to translate.
        scored: the sentence pairs to score.
        beam: beam size; None: translate nothing.

    Raises:
        TaskMoEError: a model computes no numbers.
    """
    expected, reached = (each.score(scored.sources, scored.targets) for each in (full, subnet))
    for model, own in (("the full model", expected), ("the subnet", reached)):
        if not all(math.isfinite(score) for each in own for score in each):
            raise TaskMoEError(
                f"--verify {name}: {model} gives references scores that are no finite numbers; its weights are "
                "damaged, or too large for what they are stored as"
            )
    tied, different = 0, []
    if beam is not None:
        found = [each.translate(sentences.sources, beam) for each in (full, subnet)]
        rows = [row for row, (one, other) in enumerate(zip(*found)) if one != other]
        sources = [sentences.sources[row] for row in rows]
        translations = [[each[row] for row in rows] for each in found]
        scores = [full.score(sources, each) for each in translations]
        for row, (one, other), (score, other_score) in zip(rows, zip(*translations), zip(*scores)):
            if _tie(one, other, score, other_score, beam):
                tied += 1
            else:
                different.append((row, " ".join(one), " ".join(other)))
    gaps = [abs(a - b) for one, other in zip(expected, reached) for a, b in zip(one, other, strict=True)]
    translated, left_out = 0 if beam is None else len(sentences), len(sentences) - len(scored)
    largest, mean = max(gaps, default=0.0), sum(gaps) / max(len(gaps), 1)
    return Agreement(translated, tied, different, len(scored), left_out, largest, mean)


def _tie(one: list[str], other: list[str], scores: list[float], other_scores: list[float], beam: int) -> bool:
    """Whether rounding may decide between two translations, by the full model's scores of their pieces and ends.

    A beam ranks by the mean score of a piece; without one, the first piece that differs decides.
    """
    if beam > 1:
        means = [sum(each) / len(each) for each in (scores, other_scores)]
        return abs(means[0] - means[1]) <= SCORE_LIMIT
    first = next(
        (place for place, (a, b) in enumerate(zip(one, other)) if a != b),
        min(len(one), len(other)),
    )
    return abs(scores[first] - other_scores[first]) <= SCORE_LIMIT


def _check(name: str, agreement: Agreement, rounded: bool) -> None:
    """Accept an agreement or not.

    Args:
        name: the subnet.
        agreement: what was found.
        rounded: whether the subnet's weights were rounded, so that only gross differences are an error.

    Raises:
        TaskMoEError: the subnet differs from the full model, or nothing was compared.
    """
    if not agreement.scored:
        raise TaskMoEError(
            f"--verify {name}: nothing was compared, because all {agreement.left_out} sentences have pieces that were "
            "trimmed; give more sentences, or another set with --gen-subset"
        )
    if rounded:
        failed, limit = agreement.mean > ROUNDED_SCORE_LIMIT, f"{ROUNDED_SCORE_LIMIT} on average"
    else:
        failed, limit = bool(agreement.different) or agreement.largest > SCORE_LIMIT, f"{SCORE_LIMIT} a token"
    if failed:
        first = (
            "; sentence {} of the sample: {!r}, subnet: {!r}".format(*agreement.different[0])
            if agreement.different
            else ""
        )
        raise TaskMoEError(f"--verify {name}: the subnet is not the full model ({agreement}; allowed: {limit}{first})")


def read_sentences(
    data: Sequence[Path], subset: str, pair: str, vocabularies: Vocabularies, count: int | None, model: Namespace
) -> Sentences:
    """Sentences of a binarised set, evenly spaced; a line of the log tells how many of them a model cannot take.

    Args:
        data: the directories of the binarised data; the first that has the set serves.
        subset: the set, e.g. test.
        pair: the pair.
        vocabularies: the dictionaries that the data was binarised with.
        count: how many; None: all.
        model: the model's arguments; longer sentences than it takes are left out.

    Raises:
        TaskMoEError: there is no such set, or the model can take none of its sentences.
    """
    prefix, (source, target) = find_set(data, subset, pair), split_pair(pair)
    sides = (vocabularies.source, source), (vocabularies.target, target)
    sentences = Sentences(*(_read(prefix + lang, vocabulary, count) for vocabulary, lang in sides))
    if len(sentences.sources) != len(sentences.targets):
        raise TaskMoEError(f"{prefix}*: the two languages have different numbers of sentences; {AGAIN}")
    return _short_enough(sentences, f"{prefix}*", model)


def find_set(data: Sequence[Path], subset: str, pair: str) -> str:
    """The path of a binarised set without its language.

    Args:
        data, subset, pair: as of ``read_sentences``.

    Raises:
        TaskMoEError: there is none.
    """
    source, target = split_pair(pair)
    for directory in data:
        for name in (f"{source}-{target}", f"{target}-{source}"):
            prefix = str(directory / f"{subset}.{name}.")
            if indexed_dataset.dataset_exists(prefix + source, impl=None):
                return prefix
    raise TaskMoEError(f"{data[0]}: no {subset} set of {pair}; binarise one, or name another with --gen-subset")


def _short_enough(sentences: Sentences, name: str, model: Namespace) -> Sentences:
    # Each side has a language token and an end, too.
    source, target = (getattr(model, f"max_{side}_positions") - 2 for side in ("source", "target"))
    kept = sentences.no_longer_than(source, target)
    if not kept:
        raise TaskMoEError(
            f"{name}: all sentences are longer than the model takes, {source} pieces of source and {target} of target; "
            "name another set with --gen-subset"
        )
    if len(kept) < len(sentences):
        logger.warning(f"{name}: {len(sentences) - len(kept)} sentences are longer than the model takes, and left out")
    return kept


def _read(prefix: str, vocabulary: Vocabulary, count: int | None) -> list[list[str]]:
    dataset = open_set(prefix, vocabulary.dictionary)
    total = len(dataset)
    wanted = total if count is None else min(count, total)
    eos = vocabulary.dictionary.eos()
    chosen = [dataset[row * total // wanted].tolist() for row in range(wanted)]
    check_pieces(prefix, max(map(max, chosen)), len(vocabulary.symbols))
    return [[vocabulary.symbols[index] for index in sentence if index != eos] for sentence in chosen]
