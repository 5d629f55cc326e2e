"""``taskmoe translate``: raw text to raw text with a subnet, where neither fairseq nor PyTorch is needed."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from taskmoe_plugin.cli.arguments import positive
from taskmoe_plugin.errors import TaskMoEError

BATCH = 32
BROKEN_PIPE = 141  # what a shell says of a process that this has ended


def add_parser(commands: Any) -> None:
    """Add ``translate`` to the subcommands of ``taskmoe``."""
    parser: ArgumentParser = commands.add_parser(
        "translate",
        help="translate text with a subnet in CTranslate2",
        description="Translate text, one sentence a line, with what 'taskmoe extract --format ctranslate2 "
        "--sentencepiece-model' wrote. Prints a line for every line.",
    )
    add = parser.add_argument
    add("subnet", type=Path, metavar="DIR", help="the directory of a subnet, or of several")
    add("files", type=Path, nargs="*", metavar="FILE", help="UTF-8 text (default: standard input)")
    add("--source", metavar="LANG", help="source language, to choose among several subnets")
    add("--target", metavar="LANG", help="target language, to choose among several subnets")
    add("--beam-size", type=positive, default=5, metavar="N", help="beam size (default: 5)")
    add("--batch-size", type=positive, metavar="N",
        help=f"sentences translated at once (default: {BATCH}, of what is typed 1)")  # fmt: skip
    add("--threads", type=positive, default=0, metavar="N", help="threads (default: as many as CTranslate2 chooses)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one")
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Translate, line by line."""
    missing = [name for name in ("ctranslate2", "sentencepiece") if not find_spec(name)]
    if missing:
        raise TaskMoEError(f"{' and '.join(missing)}: not installed; pip install 'taskmoe-plugin[translate]'")
    from taskmoe_plugin.translate.subnets import find_subnet
    from taskmoe_plugin.translate.translator import Translator

    if sys.stdout is None:
        raise TaskMoEError("standard output: is closed; leave it open, or redirect it to a file")
    if sys.stdin is None and not args.files:
        raise TaskMoEError("standard input: is closed; give files")
    subnet = find_subnet(args.subnet, args.source, args.target)
    translator = Translator(subnet, args.beam_size, args.threads, args.device)
    # Someone who types waits for each line.
    batch = args.batch_size or (1 if not args.files and sys.stdin.isatty() else BATCH)
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    too_long = 0
    with ExitStack() as stack, _progress() as bar:
        streams = [(str(path), stack.enter_context(_open(path))) for path in args.files]
        try:
            for name, stream in streams or [("standard input", sys.stdin.buffer)]:
                for number, found in enumerate(translator.translate(_lines(name, stream), batch), 1):
                    print(_one_line(found.text), flush=number % batch == 0)
                    bar.update()
                    if found.too_long:
                        too_long += 1
                        _report(name, number, found.pieces, translator.longest)
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever reads has enough, as head does. What is left must go somewhere when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(BROKEN_PIPE) from None
    if too_long:
        raise TaskMoEError(f"{too_long} of the lines were too long, and have an empty line in their place; split them")


def _one_line(text: str) -> str:
    """A translation without line breaks, which a model can spell in bytes."""
    return text.replace("\r", " ").replace("\n", " ")


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise TaskMoEError(f"{path}: cannot be read ({error.strerror}); give a file of text") from None


def _lines(name: str, stream: BinaryIO) -> Iterator[str]:
    number = 1
    try:
        for line in stream:
            yield line.decode("utf-8").rstrip("\r\n")
            number += 1
    except UnicodeDecodeError:
        raise TaskMoEError(f"{name}, line {number}: is no UTF-8; convert the text, e.g. with iconv") from None
    except OSError as error:
        raise TaskMoEError(f"{name}: cannot be read ({error.strerror}); give a file of text") from None


def _report(name: str, number: int, pieces: int, longest: int) -> None:
    message = f"taskmoe: {name}, line {number}: has {pieces} pieces, the model takes {longest}; not translated"
    if sys.stderr is not None:  # print would take standard output in its place
        print(message, file=sys.stderr)


def _progress() -> Any:
    from tqdm import tqdm

    # Beside translations on a terminal it would be in the way.
    hidden = True if sys.stdout.isatty() else None
    return tqdm(desc="translated", unit=" lines", delay=1, leave=False, disable=hidden)
