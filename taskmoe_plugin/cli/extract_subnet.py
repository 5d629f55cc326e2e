"""``fairseq-extract-subnet``, and ``taskmoe extract``, which is the same."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskmoe_plugin.cli.arguments import lang_pairs
from taskmoe_plugin.cli.running import running
from taskmoe_plugin.errors import TaskMoEError, raise_all
from taskmoe_plugin.formats import CTRANSLATE2, FORMATS, HALF, QUANTIZATIONS, WITH_PIECES

if TYPE_CHECKING:
    from taskmoe_plugin.subnet.extract import Options

PROGRAM = "fairseq-extract-subnet"
DESCRIPTION = (
    "Cut out of a trained taskmoe_transformer the model of one language pair. For each subnet a directory is written "
    "with the model, its dictionaries and subnet.json."
)


def add_parser(commands: Any) -> None:
    """Add ``extract`` to the subcommands of ``taskmoe``."""
    help = "cut a small model of a language pair out of a trained one (the same as fairseq-extract-subnet)"
    _add_arguments(commands.add_parser("extract", help=help, description=DESCRIPTION))


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``fairseq-extract-subnet`` with the given arguments, by default those of the process."""
    parser = ArgumentParser(prog=PROGRAM, description=DESCRIPTION)
    _add_arguments(parser)
    args = parser.parse_args(argv)
    with running(PROGRAM):
        run(args)


def _add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("data", metavar="DATA_BIN", help="the binarised data that the model was trained on")
    add("--path", required=True, type=Path, metavar="CKPT", help="the trained model, e.g. checkpoint_best.pt")
    add("--lang-pairs", required=True, metavar="PAIRS",
        help="a subnet for each of en-de,en-fr, of a file of pairs, or all; en-de+en-fr is one for both")  # fmt: skip
    add("--output-dir", required=True, type=Path, metavar="DIR", help="write DIR/en-de and so on")
    add("--format", choices=FORMATS, default="fairseq", help="what to write (default: fairseq)")
    add("--sentencepiece-model", type=Path, metavar="FILE",
        help="the SentencePiece model of the training data, which the subnets take along")  # fmt: skip
    add("--quantization", choices=QUANTIZATIONS, help="how CTranslate2 weights are stored (default: float32)")
    add("--unpadded", action="store_true",
        help="each layer keeps its own width; the model needs --user-dir and --task taskmoe_translation")  # fmt: skip
    add("--trim-vocabulary", action="store_true", help="keep only the pieces that the pair's training data uses")
    add("--half", choices=HALF, help="store the weights of a fairseq or Hugging Face model in half precision")
    add("--verify", nargs="?", type=_sentences, const=100, metavar="N",
        help="compare with the full model on N sentences of the test set, or all (default: 100)")  # fmt: skip
    add("--gen-subset", default="test", metavar="SET", help="the set that --verify uses (default: test)")
    add("--license", metavar="ID", help="the licence that the model card names, e.g. cc-by-4.0")
    add("--force", action="store_true", help="replace directories that exist")
    add("--skip-existing", action="store_true",
        help="leave what the same command has made: go on where it was interrupted")  # fmt: skip
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Extract, and print the table."""
    _check(args)
    # Needs PyTorch and fairseq, which take a while to load.
    from taskmoe_plugin.subnet.extract import extract
    from taskmoe_plugin.subnet.report import Row, table

    rows: list[Row] = []
    try:
        extract(args.path, _groups(args.lang_pairs), _options(args), rows.append)
    except KeyboardInterrupt:
        raise TaskMoEError(
            f"--output-dir {args.output_dir}: interrupted; the unfinished subnet was not kept, run again with "
            "--skip-existing"
        ) from None
    finally:
        if rows:
            print(table(rows), flush=True)


def _check(args: Namespace) -> None:
    """Raise ``UsageError`` if flags contradict each other."""
    problems = []
    if args.quantization and args.format not in CTRANSLATE2:
        problems.append(f"--quantization: is for --format ctranslate2; for {args.format} there is --half")
    if args.half and args.format in CTRANSLATE2:
        problems.append("--half: is for --format fairseq and huggingface; use --quantization float16 or bfloat16")
    if args.unpadded and args.format != "fairseq":
        problems.append("--unpadded: is for --format fairseq; leave it out")
    if args.format in WITH_PIECES and not args.sentencepiece_model:
        problems.append(f"--format {args.format}: needs the pieces of the text; give --sentencepiece-model")
    if args.format == "huggingface" and args.verify is not None:
        problems.append("--verify: cannot run Hugging Face's models; verify the same subnet as --format fairseq")
    if not all("-" in pair.strip("-") for group in _groups(args.lang_pairs) or [] for pair in group):
        problems.append(f"--lang-pairs {args.lang_pairs}: give pairs such as en-de,en-fr, or all")
    raise_all(problems)


def _sentences(text: str) -> int:
    if text != "all" and (not text.isdigit() or int(text) < 1):
        raise ArgumentTypeError(f"{text}: give a number of sentences from 1 up, or all")
    return 0 if text == "all" else int(text)


def _options(args: Namespace) -> Options:
    import torch

    from taskmoe_plugin.subnet.extract import Options

    return Options(
        data=tuple(map(Path, args.data.split(":"))),
        output_dir=args.output_dir,
        format=args.format,
        padded=not args.unpadded,
        quantization=args.quantization or "float32",
        sentencepiece_model=args.sentencepiece_model,
        trim_vocabulary=args.trim_vocabulary,
        dtype=getattr(torch, HALF[args.half]) if args.half else None,
        verify=args.verify,
        subset=args.gen_subset,
        license=args.license,
        force=args.force,
        skip_existing=args.skip_existing,
    )


def _groups(text: str) -> list[list[str]] | None:
    if text == "all":
        return None
    groups = dict.fromkeys(tuple(dict.fromkeys(group.split("+"))) for group in lang_pairs(text))
    return [list(group) for group in groups]


if __name__ == "__main__":
    main()
