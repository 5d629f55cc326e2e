"""Every subnet says what it is, in a head that Hugging Face's hub reads and in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from taskmoe_plugin.subnet.model_card import model_card
from tests.helpers.corpus import Corpus
from tests.subnet.helpers import extract

CONTENT: dict[str, Any] = {
    "pairs": ["no-eng_Latn"],
    "format": "ctranslate2",
    "quantization": "int8",
    "source": {"file": "checkpoint_best.pt", "sha256": "abc"},
    "subnet": {"parameters": 1234567},
    "full_model": {"parameters": 7654321},
    "prefixes": {"no-eng_Latn": {"source": [], "target": ["__eng_Latn__"]}},
    "verified": {"no-eng_Latn": "100 of 100 hypotheses equal"},
}


def head(card: str) -> Any:
    empty, yaml_text, _ = card.split("---\n", 2)
    assert not empty
    return yaml.safe_load(yaml_text)


def test_the_head_has_languages_licence_and_purpose() -> None:
    # Norwegian's code is a false to YAML unless it is quoted.
    assert head(model_card(CONTENT, "cc-by-4.0")) == {
        "language": ["no", "eng"],
        "license": "cc-by-4.0",
        "pipeline_tag": "translation",
        "library_name": "ctranslate2",
        "tags": ["translation", "taskmoe"],
    }


def test_a_licence_that_is_not_known_is_not_named() -> None:
    assert "license" not in head(model_card(CONTENT, None))


def test_the_text_says_what_it_is_and_how_it_is_used() -> None:
    card = model_card(CONTENT, None)
    for expected in (
        "1,234,567 parameters",
        "7,654,321",
        "`taskmoe translate .`",
        "each target begins with the token __eng_Latn__",
        "Weights: int8.",
        "`checkpoint_best.pt`, SHA-256 abc",
        "100 of 100 hypotheses equal",
    ):
        assert expected in card


@pytest.mark.parametrize("pairs", ["en-de", "en-de+fr-en"])
def test_every_subnet_has_a_card(corpus: Corpus, full: Path, tmp_path: Path, pairs: str) -> None:
    directory = extract(corpus, full, tmp_path, pairs, "--license", "mit")
    card = (directory / "README.md").read_text(encoding="utf-8")
    assert head(card)["license"] == "mit"
    assert json.loads((directory / "subnet.json").read_text())["source"]["sha256"] in card
