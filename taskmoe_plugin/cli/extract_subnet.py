"""The ``fairseq-extract-subnet`` command."""

from __future__ import annotations

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from taskmoe_plugin.cli.running import running
from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.subnet.ctranslate2_format import QUANTIZATIONS
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
    add("--format", choices=("fairseq", "ctranslate2"), default="fairseq", help="what to write (default: fairseq)")
    add("--quantization", choices=QUANTIZATIONS, help="how CTranslate2 weights are stored (default: float32)")
    add("--unpadded", action="store_true",
        help="each layer keeps its own width; the model needs --user-dir and --task taskmoe_translation")  # fmt: skip
    add("--trim-vocabulary", action="store_true", help="keep only the pieces that the pair's training data uses")
    add("--half", choices=HALF, help="store the weights of a fairseq model in half precision")
    add("--verify", nargs="?", type=_sentences, const=100, metavar="N",
        help="compare with the full model on N sentences of the test set, or all (default: 100)")  # fmt: skip
    add("--gen-subset", default="test", metavar="SET", help="the set that --verify uses (default: test)")
    add("--force", action="store_true", help="replace directories that exist")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``fairseq-extract-subnet`` with the given arguments, by default those of the process."""
    parser = build_parser()
    args = parser.parse_args(argv)
    _check(parser, args)
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    with running(PROGRAM):
        try:
            rows = extract(args.path, _groups(args.lang_pairs), _options(args))
        except KeyboardInterrupt:
            raise TaskMoEError(
                f"--output-dir {args.output_dir}: interrupted; the subnet in the making was not kept, run again"
            ) from None
    print(table(rows))


def _check(parser: ArgumentParser, args: Namespace) -> None:
    if args.format == "fairseq" and args.quantization:
        parser.error("--quantization: is for --format ctranslate2; for fairseq there is --half")
    if args.format == "ctranslate2" and args.half:
        parser.error("--half: is for --format fairseq; use --quantization float16 or bfloat16")
    if args.format == "ctranslate2" and args.unpadded:
        parser.error("--unpadded: is for --format fairseq; CTranslate2 models have no padding")
    if not all(pair for group in _groups(args.lang_pairs) or [] for pair in group):
        parser.error(f"--lang-pairs {args.lang_pairs}: give pairs such as en-de,en-fr, or all")


def _sentences(text: str) -> int:
    count = 0 if text == "all" else int(text)
    if count < 0 or text == "0":
        raise ValueError
    return count


def _options(args: Namespace) -> Options:
    return Options(
        data=tuple(map(Path, args.data.split(":"))),
        output_dir=args.output_dir,
        padded=not args.unpadded,
        quantization=(args.quantization or "float32") if args.format == "ctranslate2" else None,
        trim_vocabulary=args.trim_vocabulary,
        dtype=HALF.get(args.half),
        verify=args.verify,
        subset=args.gen_subset,
        force=args.force,
    )


def _groups(text: str) -> list[list[str]] | None:
    if text == "all":
        return None
    return [list(dict.fromkeys(group.split("+"))) for group in dict.fromkeys(text.split(","))]


if __name__ == "__main__":
    main()
