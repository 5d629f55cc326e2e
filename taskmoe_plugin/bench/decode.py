"""``taskmoe bench decode``: how fast the full model, its subnets and their peers translate, and in how much memory."""

from __future__ import annotations

import gc
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from taskmoe_plugin.bench.decode_models import (
    Source,
    given_source,
    language_tokens,
    quantized,
    random_source,
    route_by_token,
    subnet,
    with_random_weights,
)
from taskmoe_plugin.bench.report import Row, progress, table
from taskmoe_plugin.bench.timing import Summary, paired_ratios, time_in_turns
from taskmoe_plugin.bench.workers import Worker, WorkerClock
from taskmoe_plugin.errors import UsageError

REFERENCE = "token"
# The token-routed model in other ways: fairscale's layer, and experts whose weights stay in few bits.
NAIVE = "naive"
PACKED = {"token-int8": 8, "token-int4": 4}
SYSTEMS = (
    "full",
    REFERENCE,
    NAIVE,
    *PACKED,
    "dense",
    "subnet",
    "subnet-unpadded",
    "subnet-trimmed",
    "ctranslate2-float32",
    "ctranslate2-int8",
)
FAIRSEQ_WORKER = ("-m", "taskmoe_plugin.bench.decode_worker")
CTRANSLATE2_WORKER = (str(Path(__file__).with_name("ctranslate2_worker.py")),)


def run(args: Namespace) -> list[Row]:
    """Translate with every system at every batch size, all of them in turns."""
    if NAIVE in args.systems and (args.precision, args.device) != ("fp32", "cpu"):
        raise UsageError("--systems naive: fairscale's layer is measured in fp32 on a CPU; leave it out here")
    batch_sizes = sorted(set(args.batch_sizes))
    with TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        progress("making the models")
        most = batch_sizes[-1]
        source = given_source(args, most) if args.data_bin else random_source(args, directory, most)
        gc.collect()
        systems = _Systems(args, source, directory)
        workers, sizes = {}, {}
        for system in (each for each in SYSTEMS if each in (REFERENCE, *args.systems)):
            progress(f"loading {system}")
            path, worker = systems.start(system)
            # Models are full of reference cycles, and so would stay in memory beside those of the workers.
            gc.collect()
            workers[system], sizes[system] = stack.enter_context(worker), _bytes_on_disk(path)
        return _measure(args, workers, sizes, batch_sizes, source.sentences)


class _Systems:
    """Makes the models and starts the processes that translate with them."""

    def __init__(self, args: Namespace, source: Source, directory: Path) -> None:
        self.args, self.source, self.directory = args, source, directory

    def start(self, system: str) -> tuple[Path, Worker]:
        """The files of a system's model, and its process."""
        common = {name: getattr(self.args, name) for name in ("beam", "length", "threads", "cpu_time", "device")}
        if system.startswith("ctranslate2"):
            quantization = system.removeprefix("ctranslate2-")
            path = self._extract(system, trim_vocabulary=True, format="ctranslate2", quantization=quantization)
            setup = {"path": str(path), "compute_type": quantization, **language_tokens(self.source), **common}
            return path, Worker(CTRANSLATE2_WORKER, setup, self.args.threads)
        path, data = self._fairseq_model(system)
        setup = {"path": str(path), "data": str(data), "pair": self.source.pair, "naive": system == NAIVE,
                 "keep_packed": system in PACKED, "even_gates": system in (REFERENCE, NAIVE, *PACKED),
                 "precision": self.args.precision, **common}  # fmt: skip
        return path, Worker(FAIRSEQ_WORKER, setup, self.args.threads)

    def _fairseq_model(self, system: str) -> tuple[Path, Path]:
        source = self.source
        if system == "full":
            return source.checkpoint, source.data
        if system in (REFERENCE, NAIVE):
            return self._token(), source.data
        if system in PACKED:
            return quantized(self._token(), self.directory / f"{system}.pt", PACKED[system]), source.data
        if system == "dense":
            model = self._extract("subnet") / "model.pt"
            return with_random_weights(model, source.data, self.directory / "dense.pt"), source.data
        options = {"subnet": {}, "subnet-unpadded": {"padded": False}, "subnet-trimmed": {"trim_vocabulary": True}}
        directory = self._extract(system, **options[system])
        return directory / "model.pt", directory

    def _token(self) -> Path:
        path = self.directory / "token.pt"
        if not path.exists():
            with_random_weights(self.source.checkpoint, self.source.data, path, route_by_token)
        return path

    def _extract(self, system: str, **options: Any) -> Path:
        directory = self.directory / system
        if not directory.exists():
            subnet(self.source, directory, **options)
        return directory / self.source.pair


def _bytes_on_disk(path: Path) -> int:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(file.stat().st_size for file in files)


def _measure(
    args: Namespace,
    workers: dict[str, Worker],
    sizes: dict[str, int],
    batch_sizes: list[int],
    sentences: list[list[str]],
) -> list[Row]:
    last: dict[tuple[str, int], dict[str, Any]] = {}
    clock = WorkerClock()

    def translator(system: str, batch: int) -> Callable[[], None]:
        def translate() -> None:
            progress(f"{system}, batch size {batch}")
            last[system, batch] = workers[system].ask({"sentences": sentences[:batch]})
            clock.seconds += last[system, batch]["seconds"]

        return translate

    calls = {(system, batch): translator(system, batch) for system in workers for batch in batch_sizes}
    seconds = time_in_turns(calls, args.repetitions, warmup=0, clock=clock)
    rows = []
    for (system, batch), values in seconds.items():
        ratio = paired_ratios(seconds[REFERENCE, batch], values)
        median = Summary.of(values).median
        rows.append(
            {
                "system": system,
                "batch": batch,
                "tokens_per_second": last[system, batch]["tokens"] / median,
                "seconds": median,
                "ratio": ratio.median,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
                "disk_bytes": sizes[system],
                **{key: value for key, value in last[system, batch_sizes[-1]].items() if key.startswith("peak")},
            }
        )
    return rows


def summary(rows: list[Row]) -> str:
    """One line for each system; its peak is the best of its batch sizes."""
    gpu = any("peak_gpu_bytes" in row for row in rows)
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    found = {(row["system"], row["batch"]): row for row in rows}
    peaks = {name: max(found[name, batch]["tokens_per_second"] for batch in batches) for name, _ in found}
    body = [
        [
            name,
            *(f"{found[name, batch]['tokens_per_second']:.0f}" for batch in batches),
            f"{peak / peaks[REFERENCE]:.2f}",
            f"{found[name, batches[0]]['ratio']:.2f}",
            f"{1e3 * found[name, batches[0]]['seconds'] / batches[0]:.0f}",
            f"{found[name, batches[0]]['peak_bytes'] / 2**20:.0f}",
            f"{found[name, batches[0]]['disk_bytes'] / 2**20:.0f}",
            *([_mebibytes(found[name, batches[0]].get("peak_gpu_bytes"))] if gpu else []),
        ]
        for name, peak in peaks.items()
    ]
    first = f"batch {batches[0]}"
    headers = ["tokens/s at batch size", *map(str, batches), "peak / token's", f"{first} / token's",
               f"ms/sentence, {first}", "peak memory, MiB", "on disk, MiB"]  # fmt: skip
    return table([*headers, *(["on the GPU, MiB"] if gpu else [])], body)


def _mebibytes(size: int | None) -> str:
    # CTranslate2 does not tell what it uses of a GPU.
    return "" if size is None else f"{size / 2**20:.0f}"


def draw(rows: list[Row], figure: Any) -> None:
    """Plot tokens per second against batch size, as figure 2 of TaskMoE does."""
    axes = figure.subplots()
    for name in dict.fromkeys(row["system"] for row in rows):
        points = [row for row in rows if row["system"] == name]
        axes.plot(
            [row["batch"] for row in points], [row["tokens_per_second"] for row in points], marker="o", label=name
        )
    axes.set_xscale("log", base=2)
    axes.set(xlabel="batch size", ylabel="tokens per second", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    figure.legend(loc="outside right upper")
