"""What a benchmark found: as a table, as JSON and CSV, and as a plot."""

from __future__ import annotations

import csv
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.files.writing import new_file, new_files

Row = dict[str, Any]
PACKAGES = ("torch", "fairseq", "ve-fairseq", "fairscale", "ctranslate2", "taskmoe-plugin")
KINDS = ("layer", "train", "parallel", "decode")
SUFFIXES = (".json", ".csv", ".png")


@dataclass(frozen=True)
class Report:
    """One run of a benchmark.

    Attributes:
        name: one of ``KINDS``.
        command: the command line, as typed.
        environment: machine, versions, threads, load when the run began.
        rows: one dictionary per figure.
    """

    name: str
    command: str
    environment: dict[str, Any]
    rows: list[Row]

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read what ``write`` wrote, or raise ``UsageError``."""
        try:
            report = cls(**json.loads(path.read_text(encoding="utf-8")))
            if report.name not in KINDS:
                raise ValueError(f"its name is {report.name!r}")
            return report
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"{path}: {_not_a_report(error)}") from error

    def summary(self, path: Path) -> str:
        """Its table, or raise ``UsageError`` if it is not that of a run; ``path`` is where it was read."""
        bench = import_module(f"taskmoe_plugin.bench.{self.name}")
        try:
            return bench.summary(self.rows)  # type: ignore[no-any-return]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UsageError(f"{path}: {_not_a_report(error)}") from error


def _not_a_report(error: Exception) -> str:
    return f"not a report of taskmoe bench ({error}); give the .json file that a run wrote"


def environment(threads: int, cpu_time: bool, device: str = "cpu") -> dict[str, Any]:
    """What a figure depends on besides the command."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        **({"gpu": torch.cuda.get_device_name(device)} if device == "cuda" else {}),
        "cpus": os.cpu_count(),
        "threads": threads,
        "clock": "time computed" if cpu_time else "time passed",
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        **versions,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def claim(prefix: str, force: bool) -> None:
    """Raise ``UsageError`` if a report named ``prefix`` exists and may not be replaced, or could not be written."""
    for suffix in SUFFIXES:
        path = Path(prefix + suffix)
        if path.exists() and not force:
            raise UsageError(f"--output {prefix}: {path} exists; give another name, or --force to replace it")
        if not path.parent.is_dir():
            raise UsageError(f"--output {prefix}: {path.parent} is not a directory; make it first")


def write(report: Report, prefix: str, draw: Callable[[Any], None]) -> list[Path]:
    """Write the report as JSON, CSV and, where matplotlib is installed, PNG.

    Args:
        report: what to write.
        prefix: path of the files without their suffix.
        draw: plots on a matplotlib figure.

    Returns:
        The files written.
    """
    paths = [Path(prefix + suffix) for suffix in SUFFIXES]
    # Of an earlier run no plot is left.
    with new_files(paths[0].parent, [path.name for path in paths], f"--output {prefix}") as temporary:
        content = json.dumps(asdict(report), indent=1) + "\n"
        (temporary / paths[0].name).write_text(content, encoding="utf-8")
        _write_csv(temporary / paths[1].name, report.rows)
    if not find_spec("matplotlib"):
        print("taskmoe: no plot was made: matplotlib is not installed; pip install matplotlib", file=sys.stderr)
        return paths[:2]
    with new_file(paths[2], f"--output {prefix}") as plot:
        _write_plot(plot, report, draw)
    return paths


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def _write_plot(path: Path, report: Report, draw: Callable[[Any], None]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    draw(figure)
    env = report.environment
    figure.suptitle(
        f"{env.get('gpu', env['processor'])}, threads {env['threads']}, torch {env.get('torch')}", fontsize="small"
    )
    figure.savefig(path, format="png", dpi=110)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table whose columns line up; numbers to the right."""
    body = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(headers), *body]) for column in range(len(headers))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(headers, widths))]
    lines.append("-|-".join("-" * width for width in widths))
    lines += [" | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in body]
    return "\n".join(f"| {line} |" if not line.startswith("-") else f"|-{line}-|" for line in lines)


def progress(message: str) -> None:
    """Tell on standard error how far a benchmark is."""
    print(f"taskmoe: {message}", file=sys.stderr, flush=True)
