"""The figures of docs/scaling.md are those that its script computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_has_what_the_script_prints() -> None:
    printed = subprocess.run([sys.executable, DOCS / "scaling.py"], capture_output=True, text=True, check=True).stdout
    page = (DOCS / "scaling.md").read_text(encoding="utf-8")
    parts = printed.strip().split("\n\n")
    assert len(parts) == 6
    # Lines are broken to fit the page.
    words = " ".join(page.split())
    for part in parts:
        assert " ".join(part.split()) in words
