"""``taskmoe convert upcycle``: a dense checkpoint made into one with experts."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from taskmoe_plugin.cli.conversions.common import add_conversion

if TYPE_CHECKING:
    from taskmoe_plugin.convert.conversion import Conversion

DESCRIPTION = (
    "Make a dense transformer, of stock fairseq's task translation_multi_simple_epoch or of this plugin's, a "
    "taskmoe_transformer that computes exactly the same. Every expert has one of K slices of a feed-forward network, "
    "and every token one expert of each slice (He et al. 2024, section 2), so that a token costs what it cost; with "
    "--copies, a copy of the whole network (Sparse Upcycling, Komatsuzaki et al. 2023). Train on with fairseq-train "
    "--finetune-from-model FILE, or, with --optimizer, --restore-file FILE."
)


def add_parser(conversions: Any) -> None:
    """Add ``upcycle`` to the conversions."""
    parser = add_conversion(
        conversions, "upcycle", "make a dense model one with experts that computes the same", DESCRIPTION, _conversion
    )
    add = parser.add_argument
    add("--copies", action="store_true", help="experts are copies of the networks, rather than slices of them")
    add("--optimizer", action="store_true",
        help="carry the optimizer's state along, to train on where the dense model stopped")  # fmt: skip
    parser.late_flags = _add_model_flags


def _add_model_flags(parser: ArgumentParser) -> None:
    from taskmoe_plugin.models.config import add_moe_args

    add_moe_args(parser)


def _conversion(args: Namespace) -> Conversion:
    from taskmoe_plugin.convert.upcycle import upcycle

    flags = {name: value for name, value in vars(args).items() if name.startswith(("moe_", "encoder_", "decoder_"))}
    given = {name: value for name, value in flags.items() if value is not None and value is not False}
    return upcycle(given, copies=args.copies, optimizer=args.optimizer)
