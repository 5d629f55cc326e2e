"""``taskmoe convert prune``."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskmoe_plugin.cli.arguments import lang_pairs, sentences
from taskmoe_plugin.cli.conversions.common import add_conversion
from taskmoe_plugin.errors import UsageError

if TYPE_CHECKING:
    from taskmoe_plugin.convert.conversion import Conversion

METRICS = ("importance", "activity", "utilization", "random")


def add_parser(conversions: Any) -> None:
    """Add ``prune`` to the conversions."""
    parser = add_conversion(
        conversions,
        "prune",
        "keep the experts that each language uses, of a model that routes by token",
        "Keep, of a model that routes by token, the experts that each language uses most; nothing is trained. "
        "Language-specific expert pruning of NLLB-200 (Koishekenov et al., ACL 2023).",
        _conversion,
    )
    add = parser.add_argument
    add("--lang-pairs", default="all", metavar="PAIRS", help="what the pruned model is for: en-de,de-en, a file "
        "of pairs, or all (default: all)")  # fmt: skip
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--experts", metavar="N[,M]",
        help="keep N experts in each layer of the encoder, M of the decoder (default: N)")  # fmt: skip
    size.add_argument("--threshold", type=float, metavar="T",
        help="one threshold for all layers: beyond the best K of a layer, where a token has K, keep experts as long "
        "as their share of the metric sums to less than T, from 0 to 1")  # fmt: skip
    add("--metric", choices=METRICS, default="importance",
        help="what an expert is worth: importance (the share of tokens that have it first, times exp of its mean "
        "probability there), activity (that share), utilization (its share of all choices, Z-code M3), or random, "
        "the control (default: importance)")  # fmt: skip
    add("--by", choices=("language", "pair", "model"), default="language",
        help="what has experts of its own: each source language in the encoder and target language in the decoder, "
        "each pair, or the model as a whole (default: language)")  # fmt: skip
    add("--data", metavar="DATA_BIN", help="the binarised data of the model, on which choices are counted")
    add("--gen-subset", default="valid", metavar="SET", help="the set to take of it (default: valid)")
    add("--sentences", default="500", metavar="N", help="how many of each pair, evenly spaced, or all (default: 500)")
    add("--seed", type=int, default=1, help="of --metric random (default: 1)")


def _conversion(args: Namespace) -> Conversion:
    experts = _experts(args.experts) if args.experts else None
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise UsageError(f"--threshold {args.threshold:g}: give a value from 0 to 1")
    if args.metric != "random" and not args.data:
        raise UsageError(f"--metric {args.metric}: is counted on data; give --data DATA_BIN")
    count = sentences(args.sentences)
    # Needs PyTorch and fairseq, which take a while to load.
    from taskmoe_plugin.convert.prune import Options, prune

    options = Options(
        pairs=() if args.lang_pairs == "all" else tuple(lang_pairs(args.lang_pairs)),
        experts=experts,
        threshold=args.threshold,
        metric=args.metric,
        by=args.by,
        data=tuple(map(Path, (args.data or "").split(":"))),
        subset=args.gen_subset,
        sentences=count,
        seed=args.seed,
    )
    return partial(prune, options=options)


def _experts(text: str) -> tuple[int, int]:
    counts = text.split(",")
    if len(counts) > 2 or not all(each.isdigit() and int(each) for each in counts):
        raise UsageError(f"--experts {text}: give a number from 1 up, or two with a comma, for encoder and decoder")
    return int(counts[0]), int(counts[-1])
