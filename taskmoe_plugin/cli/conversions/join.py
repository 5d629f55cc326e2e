"""``taskmoe convert join``."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskmoe_plugin.cli.conversions.common import add_conversion

if TYPE_CHECKING:
    from taskmoe_plugin.convert.conversion import Conversion

DESCRIPTION = (
    "Make of two trained models one that has the experts of both: these and their rows of the gates side by "
    "side, the mean of everything else. They must come from one start, such as two trainings that go on from one "
    "checkpoint; then train on, with --finetune-from-model FILE and twice the --moe-expert-count. Aggregation of "
    "experts (Z-code M3, Kim et al. 2021)."
)


def add_parser(conversions: Any) -> None:
    """Add ``join`` to the conversions."""
    help = "join the experts of two trained models"
    parser = add_conversion(conversions, "join", help, DESCRIPTION, _conversion)
    parser.add_argument("other", type=Path, metavar="OTHER", help="the other model")


def _conversion(args: Namespace) -> Conversion:
    # Needs PyTorch and fairseq, which take a while to load.
    from taskmoe_plugin.convert.join import join

    return partial(join, other=args.other)
