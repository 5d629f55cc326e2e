"""The command line of ``taskmoe bench``."""

from __future__ import annotations

import math
import shlex
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, ArgumentTypeError, Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

from taskmoe_plugin.cli.arguments import positive


def add_parser(commands: Any) -> None:
    """Add ``bench`` to the subcommands of ``taskmoe``."""
    bench = commands.add_parser("bench", help="measure speed and memory on this machine")
    kinds = bench.add_subparsers(metavar="WHAT", required=True)
    for kind, (help_text, add_args) in {
        "layer": ("one MoE layer against a dense FFN of equal work, fairscale's layer and matrix products", _add_layer),
        "train": ("words per second of fairseq's updates, against a dense model of equal work", _add_train),
        "decode": ("translating: full model, token routing, subnet, CTranslate2", _add_decode),
        "parallel": ("words per second of several processes, and the bytes they exchange", _add_parallel),
    }.items():
        parser = kinds.add_parser(kind, help=help_text, formatter_class=ArgumentDefaultsHelpFormatter)
        add_args(parser)
        _add_common(parser, kind)
        parser.set_defaults(run=_run, kind=kind)
        if kind == "parallel":
            parser.set_defaults(device="cpu")
    show = kinds.add_parser("show", help="print the table of a report")
    show.add_argument("report", type=Path, help="the .json file that a run wrote")
    show.set_defaults(run=_show)


def _add_common(parser: ArgumentParser, kind: str) -> None:
    add = parser.add_argument
    add("--repetitions", type=positive, default=7, metavar="N", help="how often everything is timed")
    add("--threads", type=positive, default=1, metavar="N", help="threads of PyTorch and CTranslate2")
    add("--cpu-time", action="store_true",
        help="count the time computed, not the time that passes: for one thread on a machine in use")  # fmt: skip
    add("--output", default=f"bench-{kind}", metavar="PREFIX", help="write PREFIX.json, PREFIX.csv and PREFIX.png")
    add("--force", action="store_true", help="replace these files if they exist")


def _add_layer(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--tokens", type=positive, nargs="+", default=[1, 32, 512, 4096], metavar="N", help="tokens in a batch")
    add("--experts", type=positive, nargs="+", default=[32], metavar="E", help="experts in the layer")
    help_text = "layers one after the other, for all of which tasks are routed once; times are those of one"
    add("--layers", type=positive, default=1, metavar="N", help=help_text)
    add("--top-k", type=positive, default=2, metavar="K", help="experts per token")
    add("--tasks", type=positive, default=8, metavar="N", help="tasks in a batch, for the system 'task'")
    add("--width", type=positive, default=512, metavar="N", help="width of the model")
    add("--ffn-dim", type=positive, default=2048, metavar="N", help="hidden width of an expert")
    _add_device(parser)
    add("--precision", "--dtypes", dest="precisions", type=_precision, nargs="+", default=["fp32"], metavar="P",
        help="one or more of fp32, fp16 and bf16, or PyTorch's names; gates always take fp32")  # fmt: skip
    add("--passes", nargs="+", default=["forward", "forward+backward"], choices=("forward", "forward+backward"))
    systems = ("products", "task", "one-task", "sentence", "token", "fairscale")
    add("--systems", nargs="+", default=list(systems), choices=systems, help="what to compare with the dense FFN")
    add(
        "--min-seconds",
        type=_seconds,
        default=0.05,
        metavar="S",
        help="call a system until a value covers about this long",
    )


def _add_device(parser: ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"),
                        help="what to compute on; a GPU's memory is measured, too")  # fmt: skip


def _add_precision(parser: ArgumentParser, help_text: str) -> None:
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16"), help=help_text)


def _add_train(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--experts", type=positive, nargs="+", default=[8, 32], metavar="E", help="experts in each MoE layer")
    _add_device(parser)
    _add_precision(parser, "what all models are trained in, the dense one too: fairseq's --fp16 and --bf16")
    _add_updates(parser, ("task", "sentence", "token"), ("merged",))


def _add_parallel(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--experts", type=positive, default=8, metavar="E", help="experts in each MoE layer")
    add("--processes", type=positive, default=2, metavar="W", help="processes that are compared with one")
    _add_updates(parser, ("token", "task"))


def _add_updates(parser: ArgumentParser, routings: tuple[str, ...], more: tuple[str, ...] = ()) -> None:
    add = parser.add_argument
    _add_shape(parser)
    add("--routings", nargs="+", default=list(routings), choices=routings + more,
        help="what the gates of both stacks route by; merged: task routing with --moe-combine weights")  # fmt: skip
    add("--tasks", type=positive, default=8, metavar="N", help="languages on the side that is not English")
    add("--tokens", type=positive, default=4096, metavar="N", help="target tokens of an update")
    add("--length", type=positive, default=32, metavar="N", help="tokens of a sentence")


def _add_decode(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "data_bin", nargs="?", metavar="DATA_BIN", help="what fairseq-preprocess wrote; default: random models and text"
    )
    add("--path", metavar="CKPT", help="a checkpoint of taskmoe_transformer")
    add("--lang-pair", metavar="PAIR", help="the pair to translate, such as en-de")
    add("--batch-sizes", type=positive, nargs="+", default=[1, 4, 16, 64], metavar="N", help="sentences in a batch")
    _add_device(parser)
    _add_precision(parser, "what models compute in, but CTranslate2's, whose names say it")
    add("--beam", type=positive, default=5, metavar="N", help="beam size")
    add("--length", type=positive, default=25, metavar="N",
        help="tokens of every hypothesis, whatever the model would do; tokens of a random source sentence")  # fmt: skip
    systems = (
        "full",
        "dense",
        "subnet",
        "subnet-unpadded",
        "subnet-trimmed",
        "ctranslate2-float32",
        "ctranslate2-int8",
    )
    more = ("naive", "token-int8", "token-int4")
    add("--systems", nargs="+", default=list(systems), choices=systems + more,
        help="what to compare with the token-routed model of the same shape; naive: that one with fairscale's layer; "
        "token-int8, token-int4: that one with its experts kept packed")  # fmt: skip
    _add_shape(parser)
    add("--experts", type=positive, default=32, metavar="E", help="experts in each MoE layer")
    add("--tasks", type=positive, default=8, metavar="N", help="languages of the random model")


def _add_shape(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--layers", type=positive, default=6, metavar="N", help="layers of each stack")
    add("--width", type=positive, default=512, metavar="N", help="width of the model")
    add(
        "--ffn-dim",
        type=positive,
        default=2048,
        metavar="N",
        help="hidden width of a feed-forward network and of an expert",
    )
    add("--heads", type=positive, default=8, metavar="N", help="attention heads")
    add("--vocabulary", type=positive, default=64000, metavar="N", help="words in the dictionary")
    add("--top-k", type=positive, default=2, metavar="K", help="experts per token")


def _precision(text: str) -> str:
    from taskmoe_plugin.bench.device import DTYPES

    for name, dtype in DTYPES.items():
        if text in (name, dtype):
            return name
    raise ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(DTYPES)})")


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ArgumentTypeError(f"{text}: give a number of seconds from 0 up")
    return number


def _run(args: Namespace) -> None:
    from taskmoe_plugin.bench import device, report

    bench = import_module(f"taskmoe_plugin.bench.{args.kind}")
    device.check(args)
    report.claim(args.output, args.force)
    command = shlex.join(["taskmoe", *sys.argv[1:]])
    environment = report.environment(args.threads, args.cpu_time, args.device)
    found = report.Report(args.kind, command, environment, bench.run(args))
    paths = report.write(found, args.output, lambda figure: bench.draw(found.rows, figure))
    print(bench.summary(found.rows))
    report.progress(f"wrote {', '.join(map(str, paths))}")


def _show(args: Namespace) -> None:
    from taskmoe_plugin.bench.report import Report

    print(Report.read(args.report).summary(args.report))
