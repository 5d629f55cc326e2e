"""The files of a report."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.files.writing import new_files
from taskmoe_plugin.models.config import STACKS
from taskmoe_plugin.report.content import Report, Row

TABLES = ("experts", "loads", "similarities", "sizes")
PICTURES = tuple(f"{stack}-{kind}" for stack in STACKS for kind in ("experts", "similarity", "load"))
FORMATS = ("png", "svg")
NAMES = (
    "report.json",
    *(f"{table}.csv" for table in TABLES),
    *(f"{picture}.{form}" for picture in PICTURES for form in FORMATS),
)
DPI = 150


def check_free(directory: Path, force: bool) -> None:
    """Refuse to replace an earlier report unasked.

    Args:
        directory: where the report is going to be written.
        force: whether one may be replaced.

    Raises:
        TaskMoEError: the directory is a file, or has a report.
    """
    if directory.exists() and not directory.is_dir():
        raise TaskMoEError(f"--output-dir {directory}: exists and is no directory; give another")
    existing = next((name for name in NAMES if (directory / name).exists()), None)
    if existing and not force:
        raise TaskMoEError(
            f"--output-dir {directory}: has a {existing} already; give --force to replace it, or another"
        )


def write(report: Report, directory: Path, plots: bool) -> None:
    """Write all files of a report, or none; what an earlier report had and this one has not is removed.

    Args:
        report: what to write.
        directory: where to; made if need be.
        plots: whether to draw pictures.

    Raises:
        TaskMoEError: the directory cannot be written to.
    """
    with new_files(directory, NAMES, f"--output-dir {directory}") as temporary:
        _write_all(report, temporary, plots)


def _write_all(report: Report, directory: Path, plots: bool) -> None:
    content = json.dumps(report.as_json(), ensure_ascii=False)
    (directory / "report.json").write_text(content + "\n", encoding="utf-8")
    tables = report.experts(), report.loads(), report.similarities(), report.sizes()
    for name, rows in zip(TABLES, tables):
        if rows:
            _write_csv(directory / f"{name}.csv", rows)
    if not plots:
        return
    from taskmoe_plugin.report.plots import figures

    for usage in report.stacks:
        for name, figure in figures(usage):
            for form in FORMATS:
                figure.savefig(directory / f"{name}.{form}", format=form, dpi=DPI)


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
