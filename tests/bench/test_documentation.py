"""The tables of docs/performance.md are those of the runs whose reports lie beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from taskmoe_plugin.cli.main import main

DOCS = Path(__file__).parents[2] / "docs"
REPORTS = sorted((DOCS / "figures").glob("*.json"))
TEXT = (DOCS / "performance.md").read_text(encoding="utf-8")


def test_every_report_is_shown() -> None:
    assert set(re.findall(r"\]\(figures/(\w+)\.png\)", TEXT)) == {path.stem for path in REPORTS} != set()


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_a_table_is_what_the_report_says(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "show", str(path)])
    assert capsys.readouterr().out in TEXT
    assert json.loads(path.read_text(encoding="utf-8"))["command"] in TEXT
