"""``taskmoe report``: what it prints and writes, and what it refuses."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.cli import report as command
from taskmoe_plugin.cli.main import main
from taskmoe_plugin.report import files, plots
from taskmoe_plugin.report.content import find_out
from tests.helpers.corpus import PAIRS, Corpus
from tests.subnet.helpers import write_model


def run(*argv: Any) -> None:
    main(["report", *map(str, argv)])


def error_of(capsys: pytest.CaptureFixture[str], *argv: Any, status: int = 1) -> str:
    """The one line that the command says when it fails."""
    with pytest.raises(SystemExit) as exit_:
        run(*argv)
    assert exit_.value.code == status
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("taskmoe: error: ")
    return line


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_all_files_are_written_and_agree(by_task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "new" / "report"
    run(by_task, "--output-dir", directory)
    assert {path.name for path in directory.iterdir()} == set(files.NAMES)
    content = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    expected = find_out(by_task, [], "valid", None)
    for usage in expected.stacks:
        layer = content["stacks"][usage.stack]["layers"]["1"]
        assert layer["weight"] == usage.layers[1].weight.tolist()
        assert layer["expert_load"] == usage.layers[1].expert_load.tolist()
        assert content["stacks"][usage.stack]["similarity"] == usage.similarity().tolist()
        rows = [row for row in read_csv(directory / "experts.csv") if row["stack"] == usage.stack]
        assert len(rows) == 2 * len(usage.tasks)
        for row in rows:
            weight = usage.layers[1].weight[usage.tasks.index(row["task"]), int(row["expert"])]
            assert float(row["weight"]) == float(weight)
            assert row["load"] == "0.5"
    loads = [float(row["load"]) for row in read_csv(directory / "loads.csv")]
    assert sum(loads) == pytest.approx(2)
    assert len(read_csv(directory / "similarities.csv")) == sum(len(usage.tasks) ** 2 for usage in expected.stacks)
    sizes = read_csv(directory / "sizes.csv")
    assert [row["pair"] for row in sizes] == ["", *PAIRS]
    assert [int(row["parameters"]) for row in sizes[1:]] == [size.parameters for size in expected.subnets]
    assert int(sizes[0]["parameters"]) == content["parameters"]["full_model"] == expected.parameters
    assert (directory / "encoder-experts.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (directory / "decoder-similarity.svg").read_text(encoding="utf-8")
    printed = capsys.readouterr().out.splitlines()
    weight = expected.stacks[0].layers[1].weight[0]
    first, second = weight.argsort(descending=True)[:2].tolist()
    assert printed[:3] == [
        "encoder, routed by source: experts (mean weight)",
        "task  layer 1",
        f"en    {first} ({weight[first]:.2f}), {second} ({weight[second]:.2f})",
    ]


def test_stacks_that_route_by_token_are_reported_with_data(
    corpus: Corpus, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(mixed, "--output-dir", tmp_path, "--data", corpus.bin, "--sentences", 3, "--gen-subset", "test", "--no-plots")
    assert "encoder, routed by token: the 4 experts with most weight" in capsys.readouterr().out
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["stacks"]["encoder"]["tasks"] == list(PAIRS)
    assert not list(tmp_path.glob("*.png"))
    run(mixed, "--output-dir", tmp_path / "without", "--no-plots")
    assert "encoder, routed by token: left out; give --data DATA_BIN" in capsys.readouterr().out


def test_an_earlier_report_is_left_alone_unless_forced(
    by_task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(by_task, "--output-dir", tmp_path)
    (tmp_path / "report.json").write_text("precious")
    (tmp_path / "notes.txt").write_text("mine")
    capsys.readouterr()
    line = error_of(capsys, by_task, "--output-dir", tmp_path)
    assert f"--output-dir {tmp_path}: has a report.json already; give --force to replace it" in line
    assert (tmp_path / "report.json").read_text() == "precious"
    run(by_task, "--output-dir", tmp_path, "--force", "--no-plots")
    assert json.loads((tmp_path / "report.json").read_text())["checkpoint"] == str(by_task)
    # The old pictures are of another model, for all that anyone knows; what is not of a report stays.
    tables = {name for name in files.NAMES if name.endswith((".csv", ".json"))}
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", *tables}


def test_nothing_is_written_when_drawing_fails(
    by_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_disk(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots, "load_figure", full_disk)
    line = error_of(capsys, by_task, "--output-dir", tmp_path)
    assert f"--output-dir {tmp_path}: cannot be written (No space left on device)" in line
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_output_directory(by_task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    line = error_of(capsys, by_task, "--output-dir", tmp_path / "file")
    assert f"--output-dir {tmp_path / 'file'}: exists and is no directory" in line


@pytest.mark.parametrize("name", command.PLOTTING)
def test_a_missing_library_is_named_with_its_extra(
    by_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda asked: None if asked == name else object())
    line = error_of(capsys, by_task, "--output-dir", tmp_path / "report")
    assert f"{name}, which draws the heat maps, is not installed; pip install 'taskmoe-plugin[plot]'" in line
    assert not (tmp_path / "report").exists()
    run(by_task, "--output-dir", tmp_path / "report", "--no-plots")


def test_matplotlib_is_not_loaded_without_plots(by_task: Path, tmp_path: Path) -> None:
    script = f"""
import sys
from functools import partial
from taskmoe_plugin.cli.main import main
main(["report", {str(by_task)!r}, "--output-dir", {str(tmp_path / "out")!r}, "--no-plots"])
print("loaded" if "matplotlib" in sys.modules else "not loaded")
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout.splitlines()[-1] == "not loaded", result.stderr


def test_a_checkpoint_that_is_no_model_with_experts_is_refused(
    corpus: Corpus, template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.pt"
    assert f"error: {missing}: no such file" in error_of(capsys, missing, "--output-dir", tmp_path / "out")
    torch.save({"a": 1}, missing)
    assert f"error: {missing}: not a fairseq checkpoint" in error_of(capsys, missing, "--output-dir", tmp_path / "out")

    dense = write_model(corpus, template, tmp_path / "dense.pt", "--moe-freq", 0)
    assert f"error: {dense}: has no MoE layer" in error_of(capsys, dense, "--output-dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_that_is_needed_must_be_there(
    corpus: Corpus, by_token: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--output-dir", tmp_path / "out")
    line = error_of(capsys, by_token, *out)
    assert f"{by_token}: no stack routes by task, so only data can tell who uses which expert; give --data" in line
    line = error_of(capsys, by_token, *out, "--data", tmp_path)
    assert f"{tmp_path / 'dict.en.txt'}: no such file" in line
    line = error_of(capsys, by_token, *out, "--data", corpus.bin, "--gen-subset", "test2")
    assert f"{corpus.bin}: no test2 set of en-de; binarise one, or name another with --gen-subset" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--data", "bin", "--sentences", "0"), "--sentences 0: give a number from 1 up, or all"),
        (("--data", "bin", "--sentences", "few"), "--sentences few: give a number from 1 up, or all"),
        (("--sentences", "10"), "--gen-subset, --sentences: say what to take of --data DATA_BIN; give it too"),
        (("--gen-subset", "test"), "--gen-subset, --sentences: say what to take of --data DATA_BIN; give it too"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_flags_that_make_no_sense_are_wrong_usage(
    by_task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], expected: str
) -> None:
    assert expected in error_of(capsys, by_task, "--output-dir", tmp_path / "out", *flags, status=2)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_interrupted_run_leaves_nothing(by_task: Path, tmp_path: Path, kind: signal.Signals) -> None:
    # Drawing is where most of the time goes; here it never ends.
    script = f"""
import time
from taskmoe_plugin.cli.main import main
from taskmoe_plugin.report import plots
plots.load_figure = lambda usage: (print("drawing", flush=True), time.sleep(60))
main(["report", {str(by_task)!r}, "--output-dir", {str(tmp_path)!r}])
"""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Where the tests run in the background, a shell has them ignore SIGINT, which children inherit.
        preexec_fn=partial(signal.signal, kind, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "drawing\n"
    assert list(tmp_path.iterdir())
    process.send_signal(kind)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"--output-dir {tmp_path}: interrupted; nothing was written, run again" in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())
