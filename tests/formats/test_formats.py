"""Files that earlier versions wrote are read by this one; those of formats that it does not know are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from taskmoe_plugin.cli.extract_subnet import main
from taskmoe_plugin.models.config import FORMAT
from tests.formats.translating import PAIR, translate

HERE = Path(__file__).parent
FORMATS = sorted(path.parent for path in HERE.glob("*/model.pt"))


def test_there_is_a_model_of_the_current_format_and_all_are_small() -> None:
    assert str(FORMAT) in [path.name for path in FORMATS]
    assert all((path / "model.pt").stat().st_size < 200_000 for path in FORMATS)


@pytest.mark.parametrize("directory", FORMATS, ids=lambda path: path.name)
def test_a_stored_model_translates_as_it_did(directory: Path) -> None:
    expected = json.loads((directory / "expected.json").read_text(encoding="utf-8"))
    found = translate(directory, directory / "model.pt")
    assert [text for _, text in found] == [text for _, text in expected["hypotheses"]]
    scores = [score for score, _ in expected["hypotheses"]]
    assert [score for score, _ in found] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("directory", FORMATS, ids=lambda path: path.name)
def test_a_subnet_of_a_stored_model_translates_as_it_does(directory: Path, tmp_path: Path) -> None:
    main([str(directory), "--path", str(directory / "model.pt"), "--lang-pairs", PAIR, "--output-dir", str(tmp_path)])
    expected = translate(directory, directory / "model.pt")
    found = translate(directory, tmp_path / PAIR / "model.pt")
    assert [text for _, text in found] == [text for _, text in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)


@pytest.mark.parametrize(("found", "age"), [(None, "an older"), (FORMAT + 1, "a newer")])
def test_another_format_is_refused_in_one_line(found: int | None, age: str, tmp_path: Path, capsys) -> None:
    state = torch.load(HERE / str(FORMAT) / "model.pt", weights_only=True)
    if found is None:
        del state["cfg"]["model"].taskmoe_format
    else:
        state["cfg"]["model"].taskmoe_format = found
    path = tmp_path / "model.pt"
    torch.save(state, path)
    with pytest.raises(SystemExit) as exit:
        translate(HERE / str(FORMAT), path)
    assert exit.value.code == 1
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "error: " in each]
    assert f"has format {found or 1}, of {age} version" in line
