"""``taskmoe bench parallel``: fairseq's updates on one process and on several, experts on each of them or spread."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from taskmoe_plugin.bench.model_args import moe_args
from taskmoe_plugin.bench.report import Row, progress, table
from taskmoe_plugin.bench.timing import Summary, paired_ratios, time_in_turns
from taskmoe_plugin.bench.train import setup, write_dictionaries
from taskmoe_plugin.bench.workers import Message, Worker, WorkerClock

WORKER = ("-m", "taskmoe_plugin.bench.parallel_worker")
ALONE, REPLICATED, SPREAD = "one process", "replicated", "expert parallel"


class Workers:
    """Processes that train one model together.

    Args:
        setups: the first message of each.
        threads: how many threads each uses.
    """

    def __init__(self, setups: Sequence[Message], threads: int, stack: ExitStack) -> None:
        # All at once: none is ready before it has met the others.
        self._pool = stack.enter_context(ThreadPoolExecutor(len(setups)))
        started = self._pool.map(lambda each: Worker(WORKER, each, threads), setups)
        self._workers = [stack.enter_context(worker) for worker in started]

    def ask(self, message: Message) -> list[Message]:
        """Have all of them do something, and return their answers."""
        return list(self._pool.map(lambda worker: worker.ask(message), self._workers))


@contextmanager
def started(args: Namespace, data: Path, routing: str, experts: str) -> Iterator[Workers]:
    """The processes of a system, which end with the context."""
    processes = 1 if experts == ALONE else args.processes
    spread = ["--moe-expert-parallel"] if experts == SPREAD else []
    flags = [*moe_args(args, routing, args.experts), *spread, "--ddp-backend", "legacy_ddp"]
    flags += ["--distributed-backend", "gloo", "--distributed-world-size", str(processes), "--distributed-no-spawn"]
    share = Namespace(**{**vars(args), "tokens": args.tokens // processes, "device": "cpu", "precision": "fp32"})
    langs = write_dictionaries(data, args)
    setups = [
        {
            **setup(share, str(data), langs, [*flags, "--distributed-rank", str(rank)]),
            "processes": processes,
            "rank": rank,
            "meeting": (data / f"{routing}-{experts}").as_uri(),
        }
        for rank in range(processes)
    ]
    with ExitStack() as stack:
        yield Workers(setups, args.threads, stack)


def run(args: Namespace) -> list[Row]:
    """Time updates of the same number of tokens; of each routing, all systems in turns."""
    rows: list[Row] = []
    for routing in args.routings:
        with TemporaryDirectory() as directory, ExitStack() as stack:
            workers = {}
            for experts in (ALONE, REPLICATED, SPREAD):
                progress(f"{routing} routing, {experts}")
                workers[experts] = stack.enter_context(started(args, Path(directory), routing, experts))
            rows += _measure(args, workers, routing)
    return rows


def _measure(args: Namespace, workers: dict[str, Workers], routing: str) -> list[Row]:
    last: dict[str, list[dict[str, Any]]] = {}
    clock = WorkerClock()

    def update(name: str) -> None:
        last[name] = workers[name].ask({})
        clock.seconds += max(answer["seconds"] for answer in last[name])

    systems = {name: lambda name=name: update(name) for name in workers}
    # The first update, which is not counted, allocates the optimizer's state.
    seconds = time_in_turns(systems, args.repetitions, warmup=0, clock=clock)
    rows = []
    for name, values in seconds.items():
        ratio = paired_ratios(seconds[ALONE], values)
        words = sum(answer["words"] for answer in last[name])
        rows.append(
            {
                "routing": routing,
                "experts": name,
                "processes": len(last[name]),
                "words_per_update": words,
                "words_per_second": words / Summary.of(values).median,
                "ratio": ratio.median,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
                "sent_bytes": sum(answer["sent_bytes"] for answer in last[name]),
                "parameters": max(answer["parameters"] for answer in last[name]),
                "peak_bytes": max(answer["peak_bytes"] for answer in last[name]),
            }
        )
    return rows


def summary(rows: list[Row]) -> str:
    """A table of words per second, speed relative to one process with quartiles, bytes exchanged, and memory."""
    body = [
        [
            row["routing"],
            row["experts"],
            row["processes"],
            f"{row['words_per_second']:.0f}",
            f"{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})",
            f"{row['sent_bytes'] / 1e6:.1f}",
            f"{row['parameters'] / 1e6:.1f}",
            f"{row['peak_bytes'] / 2**30:.2f}",
        ]
        for row in rows
    ]
    header = ["routing", "experts", "processes", "words/s", "of one process", "MB sent an update",
              "parameters of a process, millions", "its peak memory, GiB"]  # fmt: skip
    return table(header, body)


def draw(rows: list[Row], figure: Any) -> None:
    """Plot words per second and the bytes that are sent as bars, one group per routing."""
    plots = figure.subplots(1, 2)
    routings = list(dict.fromkeys(row["routing"] for row in rows))
    systems = list(dict.fromkeys(row["experts"] for row in rows))
    what = (("words_per_second", 1, "words per second"), ("sent_bytes", 1e6, "MB sent in an update"))
    for axes, (name, unit, label) in zip(plots, what):
        for place, system in enumerate(systems):
            values = [row[name] / unit for row in rows if row["experts"] == system]
            left = [group + place / (len(systems) + 1) for group in range(len(routings))]
            axes.bar(left, values, width=0.9 / (len(systems) + 1), label=system)
        axes.set_xticks(range(len(routings)), [f"{routing} routing" for routing in routings])
        axes.set_ylabel(label)
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(systems))
