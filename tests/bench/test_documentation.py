"""The tables of docs/performance.md are those of the runs whose reports lie beside it; links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from taskmoe_plugin.cli.main import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted({*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("examples/*/*.md")})
REPORTS = sorted((DOCS / "figures").glob("*.json"))
TEXT = (DOCS / "performance.md").read_text(encoding="utf-8")


def test_every_report_is_shown() -> None:
    assert set(re.findall(r"\]\(figures/(\w+)\.png\)", TEXT)) == {path.stem for path in REPORTS} != set()


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_a_table_is_what_the_report_says(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "show", str(path)])
    assert capsys.readouterr().out in TEXT
    assert json.loads(path.read_text(encoding="utf-8"))["command"] in TEXT


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_can_be_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
