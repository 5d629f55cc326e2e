"""``taskmoe consolidate``: a checkpoint whose experts are in several files, in one."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add ``consolidate`` to the subcommands of ``taskmoe``."""
    parser: ArgumentParser = commands.add_parser(
        "consolidate",
        help="put a checkpoint of --moe-expert-parallel into one file",
        description="Put a checkpoint whose experts are in several files into one, as one process would have saved it. "
        "Its tensors pass through memory one after the other.",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CKPT", help="the checkpoint, next to its folder 'experts'")
    add("--output", type=Path, required=True, metavar="FILE", help="the file to write")
    add("--drop-optimizer", action="store_true",
        help="leave out the optimizer state: the file is smaller, for translating and extracting alone")  # fmt: skip
    add("--force", action="store_true", help="replace FILE if it exists")
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Consolidate, and say how large the file is."""
    from taskmoe_plugin.subnet.consolidate import consolidate

    consolidate(args.checkpoint, args.output, optimizer=not args.drop_optimizer, force=args.force)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")
