"""What is left of converted models: recorded from a checkpoint, and the page made of the records."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import record_conversion
from render_systems import filled, render
from systems_rows import COLUMNS, ROWS
from tests.examples.commands import EXAMPLE
from tests.helpers.corpus import Corpus
from text import TextError

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def work(numbers: Corpus, learned_numbers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, vocabulary, binarised data and a model, as the steps of the example leave them."""
    directory = tmp_path_factory.mktemp("conversions")
    for part in ("text", "vocabulary"):
        (directory / part).mkdir()
    for lang in ("en", "de"):
        shutil.copy(numbers.raw / f"test.{lang}", directory / "text" / f"test.en-de.{lang}")
    shutil.copy(numbers.raw / "pieces.model", directory / "vocabulary" / "spm.model")
    (directory / "binary").symlink_to(numbers.bin)
    (directory / "model.pt").symlink_to(learned_numbers)
    return directory


def record(work: Path, monkeypatch: pytest.MonkeyPatch, name: str, *flags: str, models: int = 1) -> dict:
    checkpoints = ["--checkpoint", *[str(work / "model.pt")] * models]
    fixed = ["--lang-pairs", "en-de,de-en", "--sentences", "12", "--output", str(work / f"{name}.json")]
    argv = ["record_conversion.py", "--work-dir", str(work), "--name", name, *fixed, *checkpoints, *flags]
    monkeypatch.setattr(sys, "argv", [*argv, "--", "--moe-expert-count", "4"])
    record_conversion.main()
    return json.loads((work / f"{name}.json").read_text(encoding="utf-8"))


def test_a_conversion_leaves_its_sizes_scores_and_commands(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = record(work, monkeypatch, "whole")
    packed = record(work, monkeypatch, "packed", "--baseline", "whole", "--convert", "quantize --bits 4 --half fp16")
    fast = record(work, monkeypatch, "fast", "--extract=--format ctranslate2")
    scores = [{pair: each["bleu"] for pair, each in run["directions"].items()} for run in (whole, fast)]
    assert scores[0] == pytest.approx(scores[1], abs=0.5)
    assert {each["sentences"] for each in whole["directions"].values()} == {12}
    assert whole["bytes"]["direction"] == whole["bytes"]["whole"] > 2 * packed["bytes"]["whole"]
    assert 2 * fast["bytes"]["direction"] == fast["bytes"]["whole"] > 0
    assert packed["against"].keys() == {"en-de", "de-en"}
    assert all(run["tokens_per_second"] > 0 for run in (whole, packed, fast))
    assert packed["conversion"] == [
        "taskmoe convert quantize WORK_DIR/model.pt --output SCRATCH/converted0.pt --bits 4 --half fp16"
    ]
    assert whole["training"] == "fairseq-train WORK_DIR/binary --moe-expert-count 4"
    assert "--name whole --lang-pairs en-de,de-en --sentences 12 --output RESULTS/whole.json" in whole["command"]
    assert str(work) not in json.dumps([whole, packed, fast])


def test_two_models_are_an_ensemble_of_their_subnets(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = record(work, monkeypatch, "one", "--extract")
    two = record(work, monkeypatch, "two", "--extract", "--baseline", "one", models=2)
    assert two["directions"] == one["directions"]  # both are the same
    assert two["bytes"] == {name: 2 * each for name, each in one["bytes"].items()}
    assert {each["p"] for each in two["against"].values()} == {1.0}


def row_of(bleu: float, megabytes: float, differences: dict[str, float]) -> dict:
    score = {"bleu": bleu, "chrf": 40.0, "length_ratio": 0.875, "sentences": 7}
    return {
        "bytes": {"direction": megabytes * 1e6, "whole": 2e6 * megabytes},
        "tokens_per_second": 1234.0,
        "beam": 3,
        "directions": dict.fromkeys(("en-de", "de-en"), score),
        "against": {pair: {"difference": each, "p": 0.01} for pair, each in differences.items()},
    }


def test_the_page_in_the_documentation_is_that_of_the_records_beside_it() -> None:
    assert (DOCS / "systems.md").read_text(encoding="utf-8") == render(DOCS / "systems")


def test_every_record_has_a_row() -> None:
    rows = {name for _, names in ROWS.values() for name in names}
    assert {path.stem for path in (DOCS / "systems").glob("*.json")} <= rows
    assert {name for names in COLUMNS.values() for name in names.values()} <= rows


def test_every_row_is_one_that_the_script_records() -> None:
    script = (EXAMPLE / "conversions.sh").read_text(encoding="utf-8")
    for name in {name for _, names in ROWS.values() for name in names}:
        system, _, conversion = name.partition(".")
        assert system in script or "+" in system
        assert not conversion or conversion.split("_")[0] in script, name


def test_a_page_has_the_rows_that_are_there(tmp_path: Path) -> None:
    rows = {"merged-1": row_of(20.0, 8.0, {}), "merged-1.4_bits": row_of(18.25, 2.0, {"en-de": -2.0, "de-en": 1.0})}
    for name, row in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(row), encoding="utf-8")
    (tmp_path / "note.md").write_text("{bleu merged-1.4_bits} in {all merged-1.4_bits} MB.\n", encoding="utf-8")
    page = render(tmp_path)
    assert "18.2 in 4.0 MB.\n" in page
    assert "| whole, experts in 4 bits | 2.0 | 4.0 | 18.2 | 40.0 | 0.88 | 1 | 1 | 1234 | " in page
    assert "| merged experts | 20.0 / 8.0 |  |  |  | 18.2 / 2.0 |  |  |  |\n" in page
    assert "the first 7\nsentences of the test set of each of 2 directions, beam 3;" in page
    assert "3 bits" not in page
    with pytest.raises(TextError, match=r"note.md: \{bleu dense\}: no such figure"):
        filled("{bleu dense}", rows)
