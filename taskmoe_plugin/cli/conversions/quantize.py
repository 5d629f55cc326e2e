"""``taskmoe convert quantize``: experts in few bits."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from taskmoe_plugin.cli.conversions.common import add_conversion
from taskmoe_plugin.formats import HALF

if TYPE_CHECKING:
    from taskmoe_plugin.convert.conversion import Conversion

DESCRIPTION = (
    "Store the weights of experts in few bits, symmetric, with one scale for each row: 8 and 4 bits as in Who Says "
    "Elephants Can't Run (Kim et al. 2022), 3 and 2 as in MoQE (Kim et al. 2023), which trains for 2 bits "
    "(--moe-expert-bits 2). fairseq's commands load the file as they load the full one, and make floating point "
    "numbers of it. Subnets are cut out of it as well."
)


def add_parser(conversions: Any) -> None:
    """Add ``quantize`` to the conversions."""
    parser = add_conversion(
        conversions, "quantize", "store the weights of experts in few bits", DESCRIPTION, _conversion
    )
    add = parser.add_argument
    add("--bits", type=int, choices=(8, 4, 3, 2), required=True, help="bits of a weight")
    add("--group", type=int, metavar="N", help="one scale for each N weights of a row (default: for the whole row)")
    add("--half", choices=HALF, help="store all other weights, but those of gates, in half precision")


def _conversion(args: Namespace) -> Conversion:
    # Needs PyTorch and fairseq, which take a while to load.
    import torch

    from taskmoe_plugin.convert.quantize import quantize_experts
    from taskmoe_plugin.errors import UsageError

    if args.group is not None and args.group < 1:
        raise UsageError(f"--group {args.group}: give at least 1")
    return quantize_experts(args.bits, args.group, getattr(torch, HALF[args.half]) if args.half else None)
