#!/usr/bin/env python3
"""Render what record_conversion.py has written, RESULTS/NAME.json, as a page of tables.

Rows that are missing are left out, so that the page is true at any time. RESULTS/note.md is the first that is said; in
it {bleu NAME}, {chrf NAME}, {length NAME}, {one NAME}, {all NAME} and {speed NAME} stand for a row's figures.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import text
from comparison_tables import SIGNIFICANT, markdown
from pages import write_page
from systems_rows import COLUMNS, ROWS, SYSTEMS
from text import TextError

Row = dict[str, Any]
Rows = dict[str, Row]

HEAD = """# Systems and what is left of them when they are converted

Rendered by `examples/wmt_multilingual/render_systems.py` from the files in `docs/systems/`, one for each row, which
`examples/wmt_multilingual/conversions.sh settings/conversions.sh` leaves. Each names the commands that made it.

"""
HOW = """
## How it was measured

BLEU, chrF and length, that of the translations in parts of the references', are sacrebleu's on the first {sentences}
sentences of the test set of each of {directions} directions, beam {beam}; shown are means over directions. *Worse* and
*better* count the directions in which sacrebleu's paired bootstrap (1,000 samples) finds a difference from the first
row of the table with p < 0.05. *One direction* is what is stored to translate one, the mean over directions: a
subnet where there are any. *All* is the whole model, or all its subnets. Both are weights alone, without dictionaries
and pieces, in millions of bytes. Tokens are counted by the second that one core computes, sentence ends included,
without loading; the machine did other work at the time, so that differences of a fifth mean nothing. fairseq makes
floating point numbers of quantised experts when it loads them, which is why these are no faster.
"""
SAID = """BLEU, and what one direction stores. A cell is empty where that is not measured, or is nothing: tokens may
choose any expert, so that a model which routes by them has no subnets before it is pruned; merged experts are pruned by
extraction; and what is extracted of a dense model is that model."""
FIELDS: dict[str, Callable[[Row], str]] = {
    "bleu": lambda row: f"{mean(row, 'bleu'):.1f}",
    "chrf": lambda row: f"{mean(row, 'chrf'):.1f}",
    "length": lambda row: f"{mean(row, 'length_ratio'):.2f}",
    "one": lambda row: f"{row['bytes']['direction'] / 1e6:.1f}",
    "all": lambda row: f"{row['bytes']['whole'] / 1e6:.1f}",
    "speed": lambda row: f"{row['tokens_per_second']:.0f}",
}


def mean(row: Row, metric: str) -> float:
    """The mean of a score over directions."""
    return statistics.mean(float(each[metric]) for each in row["directions"].values())


def load(results: Path) -> Rows:
    """The rows by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}


def differences(row: Row) -> tuple[str, str]:
    """In how many directions a row is worse, and in how many better, than the one it was tested against."""
    if "against" not in row:
        return "", ""
    found = [each["difference"] for each in row["against"].values() if each["p"] < SIGNIFICANT]
    return f"{sum(each < 0 for each in found)}", f"{sum(each > 0 for each in found)}"


def table(rows: Rows, names: dict[str, tuple[str, str]]) -> str:
    """A table of the rows that are there, by name: what they are called, and what was published of it."""
    found = {name: rows[name] for name in names if name in rows}
    if not found:
        return ""
    head = (
        "", "one direction, MB", "all, MB", "BLEU", "chrF", "length", "worse", "better", "tokens/s", "published",
    )  # fmt: skip
    fields = [FIELDS[name] for name in ("one", "all", "bleu", "chrf", "length")]
    body = [
        (names[name][0], *(field(row) for field in fields), *differences(row), FIELDS["speed"](row), names[name][1])
        for name, row in found.items()
    ]
    return markdown(head, body)


def compression(rows: Rows) -> str:
    """BLEU and what one direction stores, for each system and conversion that goes with it."""
    body = []
    for system, label in SYSTEMS.items():
        found = [rows.get(names[system]) if system in names else None for names in COLUMNS.values()]
        cells = [f"{FIELDS['bleu'](row)} / {FIELDS['one'](row)}" if row else "" for row in found]
        if any(cells):
            body.append((label, *cells))
    return markdown(("BLEU / MB", *COLUMNS), body) if body else ""


def filled(note: str, rows: Rows) -> str:
    """The note with the figures of the rows that it names.

    Raises:
        TextError: there is no such row or figure.
    """

    def figure(match: re.Match[str]) -> str:
        field, name = match.groups()
        if field not in FIELDS or name not in rows:
            raise TextError(f"note.md: {match[0]}: no such figure; give one of {', '.join(FIELDS)} and a row's name")
        return FIELDS[field](rows[name])

    return re.sub(r"\{(\w+) ([^}]+)\}", figure, note)


def render(results: Path) -> str:
    """The whole page."""
    rows, note = load(results), results / "note.md"
    parts = [HEAD, filled(note.read_text(encoding="utf-8"), rows) if note.exists() else ""]
    matrix = compression(rows)
    parts += [f"\n## Train large, then compress\n\n{SAID}\n\n{matrix}"] if matrix else []
    for title, (said, names) in ROWS.items():
        found = table(rows, names)
        parts += [f"\n## {title}\n\n{said}\n\n{found}"] if found else []
    if rows:
        first = next(iter(rows.values()))
        scores = list(first["directions"].values())
        values = {"sentences": scores[0]["sentences"], "directions": len(scores), "beam": first["beam"]}
        parts.append(HOW.format(**values))
    return "".join(parts)


def main() -> None:
    write_page(__doc__, "systems", render)


if __name__ == "__main__":
    text.run(main)
