"""The ``fairseq-extract-subnet`` command."""

from __future__ import annotations

import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from taskmoe_plugin.subnet.errors import SubnetError
from taskmoe_plugin.subnet.extract import Options, extract
from taskmoe_plugin.subnet.report import table

PROGRAM = "fairseq-extract-subnet"
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def build_parser() -> ArgumentParser:
    """The command line of ``fairseq-extract-subnet``."""
    parser = ArgumentParser(
        prog=PROGRAM,
        description="Cut out of a trained taskmoe_transformer the model of one language pair. For each subnet a "
        "directory is written with the model, its dictionaries and subnet.json.",
    )
    add = parser.add_argument
    add("data", metavar="DATA_BIN", help="the binarised data that the model was trained on")
    add("--path", required=True, type=Path, metavar="CKPT", help="the trained model, e.g. checkpoint_best.pt")
    add("--lang-pairs", required=True, metavar="PAIRS",
        help="a subnet for each of en-de,en-fr, or all; en-de+en-fr is one subnet for both")  # fmt: skip
    add("--output-dir", required=True, type=Path, metavar="DIR", help="write DIR/en-de and so on")
    add("--unpadded", action="store_true",
        help="each layer keeps its own width; such a model needs --user-dir and --task taskmoe_translation")  # fmt: skip
    add("--trim-vocabulary", action="store_true", help="keep only the pieces that the pair's training data uses")
    add("--half", choices=HALF, help="store the weights in half precision")
    add("--force", action="store_true", help="replace directories that exist")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``fairseq-extract-subnet`` with the given arguments, by default those of the process."""
    args = build_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        rows = extract(args.path, _groups(args.lang_pairs), _options(args))
    except SubnetError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail(f"--output-dir {args.output_dir}: interrupted; the subnet in the making was not kept, run again")
    print(table(rows))


def _options(args: Namespace) -> Options:
    return Options(
        data=tuple(map(Path, args.data.split(":"))),
        output_dir=args.output_dir,
        padded=not args.unpadded,
        trim_vocabulary=args.trim_vocabulary,
        dtype=HALF.get(args.half),
        force=args.force,
    )


def _groups(text: str) -> list[list[str]] | None:
    if text == "all":
        return None
    return [list(dict.fromkeys(group.split("+"))) for group in dict.fromkeys(text.split(","))]


def _interrupt(*args: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str) -> NoReturn:
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
