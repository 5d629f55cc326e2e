"""The ``taskmoe`` command."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from taskmoe_plugin.cli import bench, consolidate, convert, extract_subnet, launch, report, translate
from taskmoe_plugin.cli.running import running
from taskmoe_plugin.errors import PROGRAM


def build_parser() -> ArgumentParser:
    """The command line of ``taskmoe``; every subcommand sets ``run``, a function of the parsed arguments."""
    parser = ArgumentParser(prog="taskmoe", description="Task-level mixture of experts for fairseq.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    user_dir = commands.add_parser("user-dir", help="print the directory to give to fairseq's --user-dir")
    user_dir.set_defaults(run=lambda args: print(Path(__file__).parents[1]))
    bench.add_parser(commands)
    consolidate.add_parser(commands)
    convert.add_parser(commands)
    extract_subnet.add_parser(commands)
    launch.add_parser(commands)
    report.add_parser(commands)
    translate.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``taskmoe`` with the given arguments, by default those of the process."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "files") or any(each.startswith("-") for each in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes files before the flags alone
        args.files += map(Path, rest)
    with running(PROGRAM):
        args.run(args)
