"""BLEU and chrF of every direction during validation."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import Any

import torch
from fairseq import utils
from fairseq.data import encoders
from fairseq.logging import metrics
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.helpers import extract_all_char_ngrams
from torch import Tensor

from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.models.task_table import split_pair
from taskmoe_plugin.scoring import TOKENIZERS, make_bleu, tokenizer_of

ORDER = 4  # n-grams up to 4 words: the order of BLEU
# What is counted for a direction: for BLEU n-gram matches, n-gram totals, hypothesis and reference lengths; for chrF,
# of each order, character n-grams of hypothesis and reference, and matches.
BLEU_COUNTS = 2 * ORDER + 2
COUNTS = BLEU_COUNTS + 3 * CHRF.CHAR_ORDER


def add_bleu_args(parser: ArgumentParser) -> None:
    """Add the flags that fairseq's ``translation`` task has for BLEU during validation, and the tokenizer's."""
    add = parser.add_argument
    add("--eval-bleu", action="store_true", help="score every direction of the validation set with BLEU and chrF")
    add("--eval-bleu-tokenize", choices=TOKENIZERS, metavar="NAME",
        help="sacrebleu's tokenizer, e.g. flores200 for spBLEU (default: that of the target language)")  # fmt: skip
    add("--eval-bleu-args", default="{}", metavar="JSON", help='generation flags, e.g. \'{"beam": 4, "lenpen": 0.6}\'')
    add("--eval-bleu-detok", default="space", metavar="NAME",
        help="detokenizer, e.g. moses; space: none (default: space)")  # fmt: skip
    add("--eval-bleu-detok-args", default="{}", metavar="JSON", help="arguments of the detokenizer")
    add("--eval-tokenized-bleu", action="store_true", help="score the tokens, without sacrebleu's tokenizer")
    add("--eval-bleu-remove-bpe", nargs="?", const="@@ ", default=None, metavar="SYMBOL",
        help="undo BPE before scoring; sentencepiece for SentencePiece")  # fmt: skip
    add("--eval-bleu-print-samples", action="store_true", help="print a hypothesis and its reference per batch")


def parse_bleu_args(args: Namespace) -> None:
    """Raise ``UsageError`` if the flags of ``add_bleu_args`` cannot work."""
    for name in ("eval_bleu_args", "eval_bleu_detok_args"):
        flag, text = "--" + name.replace("_", "-"), getattr(args, name)
        try:
            if not isinstance(json.loads(text, parse_constant=_refuse), dict):
                raise UsageError(f"{flag} {text}: give a JSON object, e.g. '{{\"beam\": 4}}'")
        except ValueError as error:
            raise UsageError(f"{flag} {text}: not JSON ({error}); give an object, e.g. '{{\"beam\": 4}}'") from error
    if args.eval_tokenized_bleu and args.eval_bleu_tokenize:
        raise UsageError(
            f"--eval-bleu-tokenize {args.eval_bleu_tokenize}: contradicts --eval-tokenized-bleu; leave one of them out"
        )
    if args.eval_bleu and args.eval_bleu_detok not in encoders.TOKENIZER_REGISTRY:
        known = ", ".join(sorted(encoders.TOKENIZER_REGISTRY))
        raise UsageError(f"--eval-bleu-detok {args.eval_bleu_detok}: no such detokenizer; give one of {known}")
    if args.eval_bleu and args.lang_tok_replacing_bos_eos:
        raise UsageError(
            "--eval-bleu: cannot be combined with --lang-tok-replacing-bos-eos; score with fairseq-generate"
        )


def _refuse(constant: str) -> None:
    # Python's reader takes NaN and infinities, which are no JSON.
    raise ValueError(f"{constant} is no number")


class ValidationBleu:
    """Translates validation batches and counts, for every direction, what BLEU and chrF are computed from.

    Args:
        task: the translation task, of which ``build_generator`` and ``inference_step`` are used.
        model: the model in training.
        pairs: number of directions.
        langtoks: indices of the language tokens, which are no part of a translation.

    Raises:
        UsageError: what a target language's tokenizer needs is not installed.
    """

    def __init__(self, task: Any, model: Any, pairs: int, langtoks: set[int]) -> None:
        args = task.args
        self.task = task
        self.model = model
        self.pairs = pairs
        self.langtoks = langtoks
        self.remove_bpe = args.eval_bleu_remove_bpe
        self.print_samples = args.eval_bleu_print_samples
        tokenize = "none" if args.eval_tokenized_bleu else args.eval_bleu_tokenize
        targets = [split_pair(pair)[1] for pair in task.lang_pairs]
        try:
            # A tokenizer may be a large model, which languages share.
            names = [tokenizer_of(lang, tokenize) for lang in targets]
            languages = dict(zip(names[::-1], targets[::-1]))
            by_name = {name: make_bleu(lang, tokenize, "--eval-bleu-tokenize") for name, lang in languages.items()}
        except ValueError as error:
            raise UsageError(str(error)) from error
        self.bleus = [by_name[name] for name in names]
        detok_args = json.loads(args.eval_bleu_detok_args)
        self.tokenizer = encoders.build_tokenizer(Namespace(tokenizer=args.eval_bleu_detok, **detok_args))
        # The task's generator knows one target language; a batch of validation has several.
        generation = Namespace(**json.loads(args.eval_bleu_args), keep_inference_langtok=True)
        self.generator = task.build_generator([model], generation)

    def count(self, sample: dict[str, Any], pair: Tensor) -> Tensor:
        """Statistics (pairs, COUNTS) float64.

        Args:
            sample: a batch of B rows.
            pair: (B,) int64, the direction of each row.
        """
        hypotheses = self.task.inference_step(self.generator, [self.model], sample)
        statistics = torch.zeros(self.pairs, COUNTS, dtype=torch.float64)
        pad = self.task.target_dictionary.pad()
        for row, direction in enumerate(pair.tolist()):
            hypothesis = self._text(hypotheses[row][0]["tokens"], "UNKNOWNTOKENINHYP")
            # An unknown token in the reference must match nothing.
            reference = self._text(utils.strip_pad(sample["target"][row], pad), "UNKNOWNTOKENINREF")
            if self.print_samples and row == 0:
                print(f"example hypothesis: {hypothesis}\nexample reference: {reference}", flush=True)
            score = self.bleus[direction].corpus_score([hypothesis], [[reference]])
            counts = [*score.counts, *score.totals, score.sys_len, score.ref_len]
            statistics[direction] += torch.tensor([*counts, *_chrf_counts(hypothesis, reference)])
        return statistics.to(pair.device)

    def _text(self, tokens: Tensor, unknown: str) -> str:
        text: str = self.task.target_dictionary.string(
            tokens.int().cpu(), self.remove_bpe, unk_string=unknown, extra_symbols_to_ignore=self.langtoks
        )
        return str(self.tokenizer.decode(text)) if self.tokenizer else text


def log_bleu(statistics: Tensor, pairs: list[str]) -> None:
    """Log the scores of every direction as ``en-de_bleu`` and ``en-de_chrf``, their means as ``bleu`` and ``chrf``.

    Args:
        statistics: summed statistics of ``ValidationBleu.count``.
        pairs: the directions.
    """
    # A tensor, not an array: meters are saved in checkpoints, and safe loading refuses NumPy's classes.
    metrics.log_scalar("_bleu_statistics", statistics.cpu())
    for name, score in (("bleu", _bleu), ("chrf", _chrf)):
        for index, pair in enumerate(pairs):
            metrics.log_derived(f"{pair}_{name}", partial(_of_direction, score=score, index=index))
        metrics.log_derived(name, partial(_mean, score=score, directions=len(pairs)))


def _of_direction(meters: Any, score: Callable[[list[float]], float], index: int) -> float:
    return round(score(meters["_bleu_statistics"].sum[index].tolist()), 2)


def _mean(meters: Any, score: Callable[[list[float]], float], directions: int) -> float:
    return round(mean(_of_direction(meters, score, index) for index in range(directions)), 2)


def _bleu(statistics: list[float]) -> float:
    counts = [int(each) for each in statistics[:BLEU_COUNTS]]
    sys_len, ref_len = counts[2 * ORDER :]
    return BLEU.compute_bleu(counts[:ORDER], counts[ORDER : 2 * ORDER], sys_len, ref_len, smooth_method="exp").score


def _chrf_counts(hypothesis: str, reference: str) -> list[int]:
    counts = []
    for ours, theirs in zip(*(extract_all_char_ngrams(text, CHRF.CHAR_ORDER) for text in (hypothesis, reference))):
        # As sacrebleu counts: a sentence shorter than an n-gram tells nothing of its precision.
        counts += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
    return counts


def _chrf(statistics: list[float]) -> float:
    """chrF2 of the counts: Popović (2015), with the mean precision and recall over the orders that occur."""
    counts = statistics[BLEU_COUNTS:]
    orders = [(h, r, m) for h, r, m in zip(counts[::3], counts[1::3], counts[2::3]) if h and r]
    if not any(matches for *_, matches in orders):
        return 0.0
    precision, recall = mean(m / h for h, _, m in orders), mean(m / r for _, r, m in orders)
    factor = CHRF.BETA**2
    return 100 * (1 + factor) * precision * recall / (factor * precision + recall)
