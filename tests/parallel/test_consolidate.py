"""``taskmoe consolidate``: the file that one process would have saved."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmoe_plugin.cli.main import main
from taskmoe_plugin.subnet.scratch import ReleasingFile
from tests.helpers.corpus import Corpus
from tests.parallel import jobs
from tests.parallel.processes import PATIENCE, finish, started
from tests.parallel.scenarios import RESHARDED, STAGES
from tests.parallel.test_resharding import WITHIN
from tests.parallel.test_same_training import assert_near
from tests.parallel.training import make_trainer, run_updates, save_as_fairseq, stage_directory


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def consolidate(corpus: Corpus, name: str, stage: int, output: Path, *flags: str) -> Path:
    """Consolidate the checkpoint of a stage of resharding."""
    checkpoint = stage_directory(corpus, name, stage) / "checkpoint_last.pt"
    main(["consolidate", str(checkpoint), "--output", str(output), *flags])
    return output


@pytest.mark.parametrize("name", RESHARDED)
@pytest.mark.parametrize("stage", [1, 2])
def test_the_file_is_what_one_process_would_have_saved(
    unbroken: Any, corpus: Corpus, tmp_path: Path, name: str, stage: int
) -> None:
    found = load(consolidate(corpus, name, stage, tmp_path / "one.pt"))
    # That process goes on from the checkpoint and saves at once.
    (tmp_path / "saved").mkdir()
    before = stage_directory(corpus, name, stage) / "checkpoint_last.pt"
    trainer = make_trainer(corpus, RESHARDED[name], 1, 0, tmp_path / "saved", before)
    trainer.load_checkpoint(str(before))
    # The optimizer's state becomes complete with the first batch.
    trainer.task.spread_experts.attach(trainer.get_model(), trainer.optimizer, tmp_path / "saved")
    save_as_fairseq(trainer, stage + 1)
    expected = load(tmp_path / "saved" / "checkpoint_last.pt")
    for part in ("model", "last_optimizer_state"):
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)
    assert found.keys() == expected.keys()
    last = unbroken[name][: STAGES[stage][1].stop][-1]["weights"]
    assert_near({each: found["model"][each].to(last[each].dtype) for each in last}, last, WITHIN.get(name, 1e-5))


@pytest.mark.parametrize("name", RESHARDED)
def test_training_goes_on_from_the_file_as_the_unbroken_run(
    unbroken: Any, corpus: Corpus, tmp_path: Path, name: str
) -> None:
    path = consolidate(corpus, name, 2, tmp_path / "one.pt")
    trainer = make_trainer(corpus, RESHARDED[name], 1, 0, tmp_path)
    trainer.load_checkpoint(str(path))
    last = STAGES[3][1]
    for found, expected in zip(run_updates(trainer, RESHARDED[name].updates[last], 1, 0), unbroken[name][last]):
        assert_near(found["weights"], expected["weights"], WITHIN.get(name, 1e-5))


def test_the_optimizer_state_can_be_left_out(unbroken: Any, corpus: Corpus, tmp_path: Path) -> None:
    whole = load(consolidate(corpus, "adam", 1, tmp_path / "whole.pt"))
    small = load(consolidate(corpus, "adam", 1, tmp_path / "small.pt", "--drop-optimizer"))
    assert small["last_optimizer_state"] is None
    torch.testing.assert_close(small["model"], whole["model"], rtol=0, atol=0)
    assert (tmp_path / "small.pt").stat().st_size < (tmp_path / "whole.pt").stat().st_size / 2


def test_a_file_is_replaced_only_if_asked(
    unbroken: Any, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "one.pt"
    path.write_text("mine")
    with pytest.raises(SystemExit) as exit:
        consolidate(corpus, "adam", 1, path)
    assert exit.value.code == 1
    assert capsys.readouterr().err == f"taskmoe: error: --output {path}: exists; give --force to replace it\n"
    assert path.read_text() == "mine"
    consolidate(corpus, "adam", 1, path, "--force")
    assert "model" in load(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_that_leads_nowhere_is_replaced_only_if_asked(
    unbroken: Any, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "one.pt"
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(SystemExit):
        consolidate(corpus, "adam", 1, path)
    assert capsys.readouterr().err == f"taskmoe: error: --output {path}: exists; give --force to replace it\n"
    assert path.is_symlink()
    consolidate(corpus, "adam", 1, path, "--force")
    assert "model" in load(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_is_too_long_is_one_line(
    unbroken: Any, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        consolidate(corpus, "adam", 1, tmp_path / ("x" * 5000))
    assert exit.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "File name too long" in line
    assert len(line) < 500


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_is_called_so_and_leaves_nothing(
    unbroken: Any, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch, kind: signal.Signals
) -> None:
    # PyTorch reports whatever its file raises as trouble with writing.
    def interrupted(file: Any, data: Any) -> int:
        signal.raise_signal(kind)
        return len(data)

    monkeypatch.setattr(ReleasingFile, "write", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as exit:
            consolidate(corpus, "adam", 1, tmp_path / "one.pt")
    finally:
        signal.signal(signal.SIGINT, before)
    assert exit.value.code == 1
    assert "interrupted; what it was writing was not kept" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_consolidated_is_refused(
    unbroken: Any, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = stage_directory(corpus, "adam", 0) / "checkpoint_last.pt"
    spread = stage_directory(corpus, "adam", 1) / "checkpoint_last.pt"
    broken = tmp_path / "broken.pt"
    broken.write_bytes(spread.read_bytes()[:1000])
    alone = tmp_path / "alone.pt"
    alone.write_bytes(spread.read_bytes())
    for path, message in (
        (whole, f"{whole}: has no experts in other files"),
        (tmp_path / "none.pt", "none.pt: no such file"),
        (broken, f"{broken}: truncated: its end is missing; copy it again"),
        (alone, f"{tmp_path}/experts/"),
    ):
        with pytest.raises(SystemExit) as exit:
            main(["consolidate", str(path), "--output", str(tmp_path / "out.pt")])
        assert exit.value.code == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["consolidate", str(spread), "--output", str(tmp_path / "nowhere" / "out.pt")])
    assert f"--output {tmp_path}/nowhere/out.pt: cannot be written" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [alone, broken]


def test_memory_is_a_few_tensors_whatever_the_size_of_the_checkpoint(tmp_path: Path) -> None:
    megabytes = 2**20
    with started(jobs.consolidate_large, 1, tmp_path) as running:
        finish(running)
    size = (tmp_path / "one.pt").stat().st_size
    assert size > 300 * megabytes
    largest = jobs.LARGE * jobs.LARGE * 4
    assert int((tmp_path / "growth").read_text()) < largest + 40 * megabytes < size / 4


def test_killed_while_writing_it_leaves_no_file_of_that_name(tmp_path: Path) -> None:
    with started(jobs.consolidate_killed, 1, tmp_path) as running:
        running[0].join(PATIENCE)
        assert running[0].exitcode == -signal.SIGKILL
    assert not (tmp_path / "one.pt").exists()
    left = [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
    assert {re.sub(r"\w{8}\.tmp", "", name) for name in left} == {".one.pt."}
