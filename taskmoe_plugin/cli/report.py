"""``taskmoe report``: which tasks use which experts of a trained model."""

from __future__ import annotations

from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from taskmoe_plugin.cli.arguments import sentences
from taskmoe_plugin.errors import TaskMoEError, UsageError

PLOTTING = ("matplotlib", "scipy")


def add_parser(commands: Any) -> None:
    """Add ``report`` to the subcommands of ``taskmoe``."""
    parser = commands.add_parser(
        "report",
        help="show which tasks use which experts of a trained model",
        description="Show which tasks use which experts of a trained taskmoe_transformer, with what weight, and how "
        "many parameters each subnet has: a table here, JSON, CSV, and heat maps as PNG and SVG in a directory.",
    )
    add = parser.add_argument
    add("path", type=Path, metavar="CKPT", help="the trained model, e.g. checkpoint_best.pt")
    add("--output-dir", required=True, type=Path, metavar="DIR", help="write report.json and so on into DIR")
    add("--data", metavar="DATA_BIN",
        help="the binarised data of the model; for stacks that route by sentence or token")  # fmt: skip
    add("--gen-subset", metavar="SET", help="the set to run the model on (default: valid)")
    add("--sentences", metavar="N", help="how many of each pair, evenly spaced, or all (default: 500)")
    add("--no-plots", action="store_true", help="draw no heat maps, which need matplotlib and scipy")
    add("--force", action="store_true", help="replace an earlier report")
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Make the report."""
    count = sentences(args.sentences or "500")
    if args.data is None and (args.gen_subset or args.sentences):
        raise UsageError("--gen-subset, --sentences: say what to take of --data DATA_BIN; give it too")
    missing = [] if args.no_plots else [name for name in PLOTTING if not find_spec(name)]
    if missing:
        raise TaskMoEError(
            f"{' and '.join(missing)}, which draws the heat maps, is not installed; "
            "pip install 'taskmoe-plugin[plot]', or give --no-plots"
        )
    # Needs PyTorch and fairseq, which take a while to load.
    from taskmoe_plugin.report import content, files, table

    data = [Path(each) for each in args.data.split(":")] if args.data else []
    try:
        files.check_free(args.output_dir, args.force)
        report = content.find_out(args.path, data, args.gen_subset or "valid", count)
        files.write(report, args.output_dir, plots=not args.no_plots)
    except KeyboardInterrupt:
        raise TaskMoEError(f"--output-dir {args.output_dir}: interrupted; nothing was written, run again") from None
    print(table.summary(report))
