"""``taskmoe convert``: a checkpoint made into another one."""

from __future__ import annotations

from typing import Any

from taskmoe_plugin.cli.conversions import join, moefy, prune, quantize, upcycle
from taskmoe_plugin.cli.conversions.common import ConversionParser


def add_parser(commands: Any) -> None:
    """Add ``convert`` to the subcommands of ``taskmoe``."""
    parser = commands.add_parser(
        "convert",
        help="make a checkpoint into another one",
        description="Make a checkpoint into another one. Tensors pass through memory slice by slice; the file appears "
        "complete or not at all. 'taskmoe convert WHAT --help' says what each conversion does and where it is from.",
    )
    conversions = parser.add_subparsers(metavar="WHAT", required=True, parser_class=ConversionParser)
    join.add_parser(conversions)
    moefy.add_parser(conversions)
    prune.add_parser(conversions)
    quantize.add_parser(conversions)
    upcycle.add_parser(conversions)
