"""BLEU of every direction during validation."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from functools import partial
from statistics import mean
from typing import Any

import torch
from fairseq import utils
from fairseq.data import encoders
from fairseq.logging import metrics
from sacrebleu.metrics.bleu import BLEU
from torch import Tensor

from taskmoe_plugin.errors import UsageError

ORDER = 4  # n-grams up to 4 words: the order of BLEU


def add_bleu_args(parser: ArgumentParser) -> None:
    """Add the flags that fairseq's ``translation`` task has for BLEU during validation."""
    add = parser.add_argument
    add("--eval-bleu", action="store_true", help="score every direction of the validation set with BLEU")
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
    """Translates validation batches and counts, for every direction, what BLEU is computed from.

    Args:
        task: the translation task, of which ``build_generator`` and ``inference_step`` are used.
        model: the model in training.
        pairs: number of directions.
        langtoks: indices of the language tokens, which are no part of a translation.
    """

    def __init__(self, task: Any, model: Any, pairs: int, langtoks: set[int]) -> None:
        args = task.args
        self.task = task
        self.pairs = pairs
        self.langtoks = langtoks
        self.remove_bpe = args.eval_bleu_remove_bpe
        self.print_samples = args.eval_bleu_print_samples
        self.bleu = BLEU(tokenize="none" if args.eval_tokenized_bleu else BLEU.TOKENIZER_DEFAULT)
        detok_args = json.loads(args.eval_bleu_detok_args)
        self.tokenizer = encoders.build_tokenizer(Namespace(tokenizer=args.eval_bleu_detok, **detok_args))
        # The task's generator knows one target language; a batch of validation has several.
        generation = Namespace(**json.loads(args.eval_bleu_args), keep_inference_langtok=True)
        self.generator = task.build_generator([model], generation)

    def count(self, model: Any, sample: dict[str, Any], pair: Tensor) -> Tensor:
        """Statistics (pairs, 2·ORDER + 2) float64: n-gram matches, n-gram totals, hypothesis and reference lengths.

        Args:
            model: the model.
            sample: a batch of B rows.
            pair: (B,) int64, the direction of each row.
        """
        hypotheses = self.task.inference_step(self.generator, [model], sample)
        statistics = torch.zeros(self.pairs, 2 * ORDER + 2, dtype=torch.float64)
        pad = self.task.target_dictionary.pad()
        for row, direction in enumerate(pair.tolist()):
            hypothesis = self._text(hypotheses[row][0]["tokens"], "UNKNOWNTOKENINHYP")
            # An unknown token in the reference must match nothing.
            reference = self._text(utils.strip_pad(sample["target"][row], pad), "UNKNOWNTOKENINREF")
            if self.print_samples and row == 0:
                print(f"example hypothesis: {hypothesis}\nexample reference: {reference}", flush=True)
            score = self.bleu.corpus_score([hypothesis], [[reference]])
            statistics[direction] += torch.tensor([*score.counts, *score.totals, score.sys_len, score.ref_len])
        return statistics.to(pair.device)

    def _text(self, tokens: Tensor, unknown: str) -> str:
        text: str = self.task.target_dictionary.string(
            tokens.int().cpu(), self.remove_bpe, unk_string=unknown, extra_symbols_to_ignore=self.langtoks
        )
        return str(self.tokenizer.decode(text)) if self.tokenizer else text


def log_bleu(statistics: Tensor, pairs: list[str]) -> None:
    """Log BLEU of every direction as ``en-de_bleu``, and the mean over directions as ``bleu``.

    Args:
        statistics: summed statistics of ``ValidationBleu.count``.
        pairs: the directions.
    """
    # A tensor, not an array: meters are saved in checkpoints, and safe loading refuses NumPy's classes.
    metrics.log_scalar("_bleu_statistics", statistics.cpu())

    def score(meters: Any, index: int) -> float:
        return _score(meters["_bleu_statistics"].sum[index].tolist())

    for index, pair in enumerate(pairs):
        metrics.log_derived(f"{pair}_bleu", partial(score, index=index))
    metrics.log_derived("bleu", lambda meters: round(mean(score(meters, index) for index in range(len(pairs))), 2))


def _score(statistics: list[float]) -> float:
    correct, total, (sys_len, ref_len) = statistics[:ORDER], statistics[ORDER : 2 * ORDER], statistics[2 * ORDER :]
    bleu = BLEU.compute_bleu(
        correct=[int(each) for each in correct],
        total=[int(each) for each in total],
        sys_len=int(sys_len),
        ref_len=int(ref_len),
        smooth_method="exp",
    )
    return round(bleu.score, 2)
