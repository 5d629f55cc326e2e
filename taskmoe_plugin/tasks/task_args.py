"""The flags that this plugin's task has beside those of fairseq's ``translation_multi_simple_epoch``."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace

from taskmoe_plugin.tasks.validation_bleu import add_bleu_args


def add_task_args(parser: ArgumentParser) -> None:
    """Add the flags."""
    add_bleu_args(parser)
    help = "translate with quantised experts (taskmoe convert quantize) as they are, for less memory"
    parser.add_argument("--keep-packed", action="store_true", help=help)


def join_pairs(args: Namespace) -> None:
    """Put commas between the pairs of ``--lang-pairs``, which is read from a file that may have lines, too."""
    if isinstance(args.lang_pairs, str):
        args.lang_pairs = ",".join(filter(None, re.split(r"[\s,]+", args.lang_pairs)))


def task_defaults() -> dict[str, object]:
    """The defaults of the flags, by attribute."""
    parser = ArgumentParser(add_help=False)
    add_task_args(parser)
    return vars(parser.parse_args([]))


def set_task_defaults(args: Namespace) -> None:
    """Fill in the flags that are not there: a checkpoint of stock fairseq has none of them."""
    for name, value in task_defaults().items():
        setattr(args, name, getattr(args, name, value))
