"""Reports: what is written, and what is refused."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from taskmoe_plugin.bench.report import Report, claim, environment, table, write
from taskmoe_plugin.errors import one_line_errors

ROWS = [{"system": "dense", "ratio": 1.0}, {"system": "token", "ratio": 0.25, "note": "a, b"}]


def report() -> Report:
    return Report("layer", "taskmoe bench layer", environment(threads=1, cpu_time=False), ROWS)


def draw(figure: Any) -> None:
    figure.subplots().plot([1, 2], [1, 4])


def test_a_report_is_written_as_json_csv_and_png(tmp_path: Path) -> None:
    found = report()
    paths = write(found, str(tmp_path / "run"), draw)
    assert [path.name for path in paths] == ["run.json", "run.csv", "run.png"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert Report.read(paths[0]) == found
    with paths[1].open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"system": "dense", "ratio": "1.0", "note": ""},
            {"system": "token", "ratio": "0.25", "note": "a, b"},
        ]
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_the_environment_names_machine_versions_threads_and_load() -> None:
    found = environment(threads=3, cpu_time=True)
    assert found["threads"] == 3
    assert found["clock"] == "time computed"
    assert found["processor"]
    assert found["torch"][0].isdigit()
    assert len(found["load"]) == 3


def test_without_matplotlib_all_but_the_plot_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("taskmoe_plugin.bench.report.find_spec", lambda name: None)
    paths = write(report(), str(tmp_path / "run"), draw)
    assert [path.name for path in paths] == ["run.json", "run.csv"]
    assert "pip install matplotlib" in capsys.readouterr().err


def test_nothing_half_written_is_left_behind(tmp_path: Path) -> None:
    def fail(figure: Any) -> None:
        raise RuntimeError("no plot today")

    with pytest.raises(RuntimeError, match="no plot today"):
        write(report(), str(tmp_path / "run"), fail)
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "run.csv"}


@pytest.mark.parametrize("suffix", [".json", ".csv", ".png"])
def test_no_file_is_replaced_unasked(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / f"run{suffix}").write_text("precious")
    with pytest.raises(SystemExit) as exit_, one_line_errors():
        claim(str(tmp_path / "run"), force=False)
    assert exit_.value.code == 2
    assert f"run{suffix} exists" in capsys.readouterr().err
    claim(str(tmp_path / "run"), force=True)


def test_a_missing_directory_is_noticed_before_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_, one_line_errors():
        claim(str(tmp_path / "nowhere" / "run"), force=False)
    assert exit_.value.code == 2
    assert "nowhere is not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", '{"name": "layer"}'])
def test_a_file_that_is_no_report_is_refused_in_one_line(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as exit_, one_line_errors():
        Report.read(path)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count("\n") == 1


def test_the_columns_of_a_table_line_up() -> None:
    text = table(["system", "of dense"], [["token", "0.25"], ["a longer name", 1]])
    assert text.splitlines() == [
        "| system        | of dense |",
        "|---------------|----------|",
        "| token         | 0.25     |",
        "| a longer name | 1        |",
    ]


def test_a_command_says_nothing_of_the_libraries_that_it_loads() -> None:
    report = Path(__file__).parents[2] / "docs/figures/layer.json"
    command = [sys.executable, "-c", "from taskmoe_plugin.cli.main import main; main()", "bench", "show", str(report)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("| dtype")
    assert done.stderr == ""
