"""``taskmoe bench train``: words per second of fairseq's updates."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from taskmoe_plugin.bench.model_args import dense_args, moe_args
from taskmoe_plugin.bench.report import Row, progress, table
from taskmoe_plugin.bench.timing import Summary, paired_ratios, time_in_turns
from taskmoe_plugin.bench.workers import Worker, WorkerClock

REFERENCE = "dense"
WORKER = ("-m", "taskmoe_plugin.bench.train_worker")


def run(args: Namespace) -> list[Row]:
    """Time updates of every routing and number of experts, each in turns with those of the dense model."""
    rows: list[Row] = []
    with TemporaryDirectory() as directory:
        langs = write_dictionaries(Path(directory), args)
        progress("dense")
        with Worker(WORKER, setup(args, directory, langs, dense_args(args)), args.threads) as dense:
            for experts in args.experts:
                for routing in args.routings:
                    progress(f"{routing} routing, {experts} experts")
                    message = setup(args, directory, langs, moe_args(args, routing, experts))
                    with Worker(WORKER, message, args.threads) as moe:
                        rows += _measure(args, {REFERENCE: dense, routing: moe}, experts)
    return rows


def _measure(args: Namespace, workers: dict[str, Worker], experts: int) -> list[Row]:
    last: dict[str, dict[str, Any]] = {}
    clock = WorkerClock()

    def update(name: str) -> None:
        last[name] = workers[name].ask({})
        clock.seconds += last[name]["seconds"]

    systems = {name: lambda name=name: update(name) for name in workers}
    # The first update, which is not counted, allocates the optimizer's state.
    seconds = time_in_turns(systems, args.repetitions, warmup=0, clock=clock)
    rows = []
    for name, values in seconds.items():
        ratio = paired_ratios(seconds[REFERENCE], values)
        rows.append(
            {
                "experts": experts,
                "precision": args.precision,
                "system": name,
                "words_per_second": last[name]["words"] / Summary.of(values).median,
                "ratio": ratio.median,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
                "parameters": last[name]["parameters"],
                **{key: value for key, value in last[name].items() if key.startswith("peak")},
            }
        )
    return rows


def write_dictionaries(directory: Path, args: Namespace) -> list[str]:
    """Write a dictionary of made-up words for each language; returns the languages."""
    langs = ["en", *(f"x{index}" for index in range(1, args.tasks))]
    words = "".join(f"w{index} 1\n" for index in range(args.vocabulary))
    for lang in langs:
        (directory / f"dict.{lang}.txt").write_text(words, encoding="utf-8")
    return langs


def setup(args: Namespace, data: str, langs: list[str], system_args: list[str]) -> dict[str, Any]:
    """The first message of a worker.

    Args:
        args: the benchmark's flags, with ``device`` and ``precision``.
        data: where the dictionaries are.
        langs: the languages.
        system_args: fairseq's flags for the model.
    """
    pairs = [pair for lang in langs[1:] for pair in (f"en-{lang}", f"{lang}-en")]
    fairseq_args = [
        data, "--langs", ",".join(langs), "--lang-pairs", ",".join(pairs), *system_args,
        "--share-all-embeddings", "--label-smoothing", "0.1", "--optimizer", "adam", "--lr", "1e-4",
        "--save-dir", data,  # where no checkpoint is, from which to go on
        "--max-tokens", str(args.tokens), "--no-save", *(["--cpu"] if args.device == "cpu" else []),
        *([] if args.precision == "fp32" else [f"--{args.precision}"]),
    ]  # fmt: skip
    return {
        "args": fairseq_args,
        "pairs": pairs,
        "tokens": args.tokens,
        "length": args.length,
        "threads": args.threads,
        "cpu_time": args.cpu_time,
    }


def summary(rows: list[Row]) -> str:
    """A table of words per second, speed relative to dense with quartiles, and memory, a GPU's where there is one."""
    gpu = "peak_gpu_bytes" in rows[0]
    body = [
        [
            row["experts"],
            row["system"],
            f"{row['words_per_second']:.0f}",
            f"{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})",
            f"{row['parameters'] / 1e6:.0f}",
            f"{row['peak_bytes'] / 2**30:.2f}",
            *([f"{row['peak_gpu_bytes'] / 2**30:.2f}"] if gpu else []),
        ]
        for row in rows
    ]
    headers = ["experts", "system", "words/s", "of dense", "parameters, millions", "peak memory, GiB"]
    return table([*headers, *(["on the GPU, GiB"] if gpu else [])], body)


def draw(rows: list[Row], figure: Any) -> None:
    """Plot speed relative to dense as bars, one group per number of experts."""
    axes = figure.subplots()
    counts = list(dict.fromkeys(row["experts"] for row in rows))
    systems = [name for name in dict.fromkeys(row["system"] for row in rows) if name != REFERENCE]
    for place, name in enumerate(systems):
        found = {row["experts"]: row["ratio"] for row in rows if row["system"] == name}
        left = [group + place / (len(systems) + 1) for group in range(len(counts))]
        axes.bar(left, [found[count] for count in counts], width=0.9 / (len(systems) + 1), label=f"{name} routing")
    axes.set_xticks(range(len(counts)), [f"{count} experts" for count in counts])
    axes.set(ylabel="words per second, dense of equal work = 1")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.legend()
