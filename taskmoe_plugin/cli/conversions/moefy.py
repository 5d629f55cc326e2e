"""``taskmoe convert moefy``."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskmoe_plugin.cli.arguments import sentences
from taskmoe_plugin.cli.conversions.common import add_conversion
from taskmoe_plugin.errors import UsageError

if TYPE_CHECKING:
    from taskmoe_plugin.convert.conversion import Conversion

DESCRIPTION = (
    "Cut the feed-forward networks of a dense transformer, of stock fairseq's task translation_multi_simple_epoch or "
    "of this plugin's, into experts: clusters of hidden units. With all experts the model computes exactly what it "
    "did; with --keep, each source language has in the encoder, and each target language in the decoder, the experts "
    "that carry most of its activation. Nothing is trained. MoEfication (Zhang et al., Findings of ACL 2022)."
)


def add_parser(conversions: Any) -> None:
    """Add ``moefy`` to the conversions."""
    help = "cut a dense model's networks into experts, of which each language keeps some"
    add = add_conversion(conversions, "moefy", help, DESCRIPTION, _conversion).add_argument
    add("--experts", type=int, required=True, metavar="E", help="how many experts to cut each network into")
    add("--keep", type=int, metavar="K", help="how many of them a language keeps (default: all)")
    add("--data", metavar="DATA_BIN", help="the binarised data of the model, on which activations are summed up")
    add("--gen-subset", default="valid", metavar="SET", help="the set to take of it (default: valid)")
    add("--sentences", default="500", metavar="N", help="how many of each pair, evenly spaced, or all (default: 500)")
    add("--seed", type=int, default=1, help="of the clustering (default: 1)")


def _conversion(args: Namespace) -> Conversion:
    count = sentences(args.sentences)
    if args.keep is not None and not args.data:
        raise UsageError(f"--keep {args.keep}: which they are is found on data; give --data DATA_BIN")
    # Needs PyTorch and fairseq, which take a while to load.
    from taskmoe_plugin.convert.moefy import Options, moefy

    data = tuple(map(Path, (args.data or "").split(":")))
    return partial(moefy, options=Options(args.experts, args.keep, data, args.gen_subset, count, args.seed))
