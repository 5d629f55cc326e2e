"""``taskmoe bench decode``: how fast the full model, its subnets and their peers translate, and in how much memory."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from taskmoe_plugin.bench.report import Row, progress, table
from taskmoe_plugin.bench.timing import Summary, paired_ratios, time_in_turns
from taskmoe_plugin.bench.workers import Worker

REFERENCE = "token"
SYSTEMS = (
    "full",
    REFERENCE,
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
    from taskmoe_plugin.bench.decode_models import given_source, random_source

    batch_sizes = sorted(set(args.batch_sizes))
    with TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        progress("making the models")
        make_source = (lambda: given_source(args, batch_sizes[-1])) if args.data_bin else (
            lambda: random_source(args, directory, batch_sizes[-1]))  # fmt: skip
        systems = _Systems(args, make_source(), directory)
        workers, sizes = {}, {}
        for system in (each for each in SYSTEMS if each in (REFERENCE, *args.systems)):
            progress(f"loading {system}")
            path, worker = systems.start(system)
            workers[system], sizes[system] = stack.enter_context(worker), _bytes_on_disk(path)
        return _measure(args, workers, sizes, batch_sizes, systems.source.sentences)


class _Systems:
    """Makes the models and starts the processes that translate with them."""

    def __init__(self, args: Namespace, source: Any, directory: Path) -> None:
        self.args, self.source, self.directory = args, source, directory
        self._made: dict[tuple[str, ...], Path] = {}

    def start(self, system: str) -> tuple[Path, Worker]:
        """The files of a system's model, and its process."""
        if system.startswith("ctranslate2"):
            return self._start_ctranslate2(system.split("-")[1])
        path, data = self._fairseq_model(system)
        setup = {"path": str(path), "data": str(data), "pair": self.source.pair, **self._common()}
        return path, Worker(FAIRSEQ_WORKER, setup, self.args.threads)

    def _common(self) -> dict[str, Any]:
        return {"beam": self.args.beam, "length": self.args.length, "threads": self.args.threads}

    def _fairseq_model(self, system: str) -> tuple[Path, Path]:
        from taskmoe_plugin.bench.decode_models import with_random_weights

        source = self.source
        if system == "full":
            return source.checkpoint, source.data
        if system == "token":
            args = {"encoder_moe_routing": "token", "decoder_moe_routing": "token", "moe_task_gate": "learned"}
            return with_random_weights(source.checkpoint, source.data, self.directory / "token.pt", **args), source.data
        if system == "dense":
            model = with_random_weights(self._subnet() / "model.pt", source.data, self.directory / "dense.pt")
            return model, source.data
        flags = {"subnet": (), "subnet-unpadded": ("--unpadded",), "subnet-trimmed": ("--trim-vocabulary",)}[system]
        directory = self._subnet(*flags)
        return directory / "model.pt", directory

    def _start_ctranslate2(self, quantization: str) -> tuple[Path, Worker]:
        from taskmoe_plugin.bench.decode_models import language_tokens

        directory = self._subnet("--trim-vocabulary", "--format", "ctranslate2", "--quantization", quantization)
        prefixes = language_tokens(self.source)
        setup = {"path": str(directory), "compute_type": quantization, **prefixes, **self._common()}
        return directory, Worker(CTRANSLATE2_WORKER, setup, self.args.threads)

    def _subnet(self, *flags: str) -> Path:
        from taskmoe_plugin.bench.decode_models import subnet

        if flags not in self._made:
            self._made[flags] = subnet(self.source, self.directory / f"subnet{len(self._made)}", *flags)
        return self._made[flags]


def _bytes_on_disk(path: Path) -> int:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(file.stat().st_size for file in files)


def _measure(
    args: Namespace, workers: dict[str, Worker], sizes: dict[str, int], batch_sizes: list[int], sentences: list[list[str]]
) -> list[Row]:
    last: dict[tuple[str, int], dict[str, Any]] = {}

    def translator(system: str, batch: int) -> Callable[[], None]:
        def translate() -> None:
            progress(f"{system}, batch size {batch}")
            last[system, batch] = workers[system].ask({"sentences": sentences[:batch]})

        return translate

    calls = {(system, batch): translator(system, batch) for system in workers for batch in batch_sizes}
    seconds = time_in_turns(calls, args.repetitions, warmup=0)
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
                "peak_bytes": last[system, batch_sizes[-1]]["peak_bytes"],
                "disk_bytes": sizes[system],
            }
        )
    return rows


def summary(rows: list[Row]) -> str:
    """One line for each system: tokens per second at each batch size, and at its peak relative to token routing's peak."""
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
        ]
        for name, peak in peaks.items()
    ]
    first = f"batch {batches[0]}"
    headers = ["tokens/s at batch size", *map(str, batches), "peak / token's", f"{first} / token's", f"ms/sentence, {first}",
               "peak memory, MiB", "on disk, MiB"]  # fmt: skip
    return table(headers, body)


def draw(rows: list[Row], figure: Any) -> None:
    """Plot tokens per second against batch size, as figure 2 of TaskMoE does."""
    axes = figure.subplots()
    for name in dict.fromkeys(row["system"] for row in rows):
        points = [row for row in rows if row["system"] == name]
        axes.plot([row["batch"] for row in points], [row["tokens_per_second"] for row in points], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="batch size", ylabel="tokens per second", yscale="log")
    axes.legend()
