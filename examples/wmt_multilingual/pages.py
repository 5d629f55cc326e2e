"""Pages of the documentation that are rendered from recorded results."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def write_page(description: str | None, name: str, render: Callable[[Path], str]) -> None:
    """Read a command line that says where results and page are, and write the page in one step.

    Args:
        description: what --help says.
        name: of the results' directory and of the page, in docs/ unless the command line says otherwise.
        render: makes the page of the results' directory.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    docs = Path(__file__).resolve().parents[2] / "docs"
    parser.add_argument("--results-dir", type=Path, default=docs / name)
    parser.add_argument("--output", type=Path, default=docs / f"{name}.md")
    args = parser.parse_args()
    page = args.output.with_name(args.output.name + ".partial")
    page.write_text(render(args.results_dir), encoding="utf-8")
    page.replace(args.output)
