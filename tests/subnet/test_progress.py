"""Extraction shows how far it is, in bytes that it has read; none is read twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taskmoe_plugin.subnet import extract as extraction
from tests.helpers.corpus import Corpus
from tests.subnet.helpers import extract


class Bar:
    """Stands in for tqdm's bar."""

    def __init__(self, loop: Any, **options: Any) -> None:
        assert loop is None
        self.options = options
        self.count = 0
        BARS.append(self)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        self.count += count


BARS: list[Bar] = []


@pytest.mark.parametrize(
    "flags",
    [(), ("--half", "fp16"), ("--format", "ctranslate2"), ("--format", "ctranslate2", "--quantization", "int8")],
    ids=lambda flags: " ".join(flags) or "fairseq",
)
def test_the_bars_end_at_their_totals(
    corpus: Corpus, full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    BARS.clear()
    monkeypatch.setattr(extraction, "tqdm", Bar)
    extract(corpus, full, tmp_path, "en-de,de-en", *flags)
    assert [bar.options["desc"] for bar in BARS] == [f"SHA-256 of {full.name}", "en-de", "de-en"]
    for bar in BARS:
        # CTranslate2 has no use for the version number, one float, that each of fairseq's stacks carries.
        assert 0 <= bar.options["total"] - bar.count <= 8 < bar.count
        # Only on a terminal, and only for what takes longer than a second.
        assert (bar.options["disable"], bar.options["delay"]) == (None, 1)
