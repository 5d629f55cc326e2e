"""What is wrong with the flags of a command before anything is loaded."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from taskmoe_plugin.errors import raise_all
from taskmoe_plugin.optim.flags import check_optimizer
from taskmoe_plugin.parallel.resuming import LAST

# What fairseq fails at with a traceback, some of it after hours.
LEAST = {"beam": 1, "max_tokens": 1, "max_tokens_valid": 1, "num_workers": 0, "warmup_updates": 0}
PROBABILITIES = (
    "dropout", "attention_dropout", "activation_dropout", "relu_dropout", "encoder_layerdrop", "decoder_layerdrop",
)  # fmt: skip
SCORES = ("bleu", "chrf")
RESETS = ("reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader")


def check_command(args: Namespace) -> None:
    """Raise ``UsageError`` that names everything wrong with numbers, languages and the checkpoint to start from.

    Args:
        args: all flags of one of fairseq's commands.
    """
    raise_all([problem for check in _CHECKS for problem in check(args)])


def _not_finite(args: Namespace) -> Iterator[str]:
    for name, value in vars(args).items():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, float) and not math.isfinite(each):
                yield f"--{name.replace('_', '-')} {each}: give a finite number"


def _languages(args: Namespace) -> Iterator[str]:
    langs, pairs = _names(args, "langs"), _names(args, "lang_pairs")
    yield from _hyphens("--langs", langs)
    for name in sorted({name for name in langs if langs.count(name) > 1}):
        yield f"--langs {','.join(langs)}: has {name} more than once; give each language once, in the old order"
    for pair in pairs:
        codes = pair.split("-")
        if len(codes) > 2:
            yield from _hyphens("--lang-pairs", [pair])
        elif len(codes) < 2 or not all(codes):
            yield f"--lang-pairs {pair}: is no pair of languages; write it as in en-de,de-en"
    for flag in ("source_lang", "target_lang"):
        yield from _hyphens(f"--{flag.replace('_', '-')}", [getattr(args, flag, None) or ""])


def _hyphens(flag: str, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if "-" in name:
            yield (
                f"{flag} {name}: a language code cannot contain a hyphen, which joins the codes of a pair; write pt_BR "
                "for pt-BR, in the names of the data's files too"
            )


def _names(args: Namespace, flag: str) -> list[str]:
    value: Any = getattr(args, flag, None) or []
    return value.split(",") if isinstance(value, str) else list(value)


def _restore_file(args: Namespace) -> Iterator[str]:
    path = getattr(args, "restore_file", LAST)
    # fairseq warns, trains from scratch, and reports success.
    if path != LAST and not Path(path).is_file():
        yield f"--restore-file {path}: no such file; give a checkpoint, or leave the flag out to start anew"


def _teacher(args: Namespace) -> Iterator[str]:
    path = getattr(args, "distill_from", None)
    if path and not Path(path).is_file():
        yield f"--distill-from {path}: no such file; give the teacher's checkpoint"


def _finetuning(args: Namespace) -> Iterator[str]:
    """What fairseq refuses, with a traceback."""
    path = getattr(args, "finetune_from_model", None)
    if path is None:
        return
    if not path:
        yield "--finetune-from-model: names no file; give a checkpoint"
    if args.restore_file != LAST:
        yield f"--finetune-from-model {path}: cannot be given with --restore-file; leave one of them out"
    for name in RESETS:
        if getattr(args, name, False):
            yield f"--{name.replace('_', '-')}: --finetune-from-model resets everything; leave it out"


def _least(args: Namespace) -> Iterator[str]:
    for name, least in LEAST.items():
        value = getattr(args, name, None)
        # Where another flag's value is the default of one, fairseq leaves it to be text.
        if isinstance(value, str) and not value.lstrip("-").isdecimal():
            yield f"--{name.replace('_', '-')} {value}: is no whole number; give at least {least}"
        elif value is not None and int(value) < least:
            yield f"--{name.replace('_', '-')} {value}: give at least {least}"


def _probabilities(args: Namespace) -> Iterator[str]:
    for name in PROBABILITIES:
        value = getattr(args, name, None)
        if value is not None and not 0 <= value <= 1:
            yield f"--{name.replace('_', '-')} {value:g}: give a value from 0 to 1"


def _heads(args: Namespace) -> Iterator[str]:
    for stack in ("encoder", "decoder"):
        width, heads = (getattr(args, f"{stack}_{name}", None) for name in ("embed_dim", "attention_heads"))
        if width and heads and (heads < 1 or width % heads):
            yield f"--{stack}-attention-heads {heads}: is no divisor of --{stack}-embed-dim {width}; give one"


def _metric(args: Namespace) -> Iterator[str]:
    metric = getattr(args, "best_checkpoint_metric", None)
    if metric in SCORES and not getattr(args, "eval_bleu", False):
        yield f"--best-checkpoint-metric {metric}: validation has it with --eval-bleu; give that, too"


def _constraints(args: Namespace) -> Iterator[str]:
    if getattr(args, "constraints", None):
        yield (
            "--constraints: fairseq's multilingual tasks do not take them; leave it out, or give a subnet "
            "--task translation"
        )


_CHECKS: tuple[Callable[[Namespace], Iterator[str]], ...] = (
    _not_finite, _languages, _restore_file, _teacher, _finetuning, _least, _probabilities, _heads, _metric,
    _constraints, check_optimizer,
)  # fmt: skip
