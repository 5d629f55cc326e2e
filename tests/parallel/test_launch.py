"""``taskmoe launch``, with real processes, one of which is killed."""

from __future__ import annotations

import signal
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from taskmoe_plugin.cli import launch
from taskmoe_plugin.cli.main import main
from taskmoe_plugin.files.locking import lock_directory
from tests.helpers.corpus import Corpus
from tests.helpers.training import train
from tests.parallel import launching
from tests.parallel.conftest import Launched


def test_when_a_process_is_killed_the_command_says_so_and_ends_within_a_minute(launched: Launched) -> None:
    assert launched.broken.status == 1
    assert launched.broken.seconds < 60
    assert launched.broken.lines[-1] == (
        "taskmoe: error: fairseq-train: process 1 of 2 was killed by SIGKILL, and the others were stopped; start the "
        "same command again to go on from the last checkpoint"
    )


def test_the_same_command_goes_on_from_the_last_checkpoint(launched: Launched) -> None:
    assert launched.resumed.status == 0, "\n".join(launched.resumed.lines)
    updates = sorted(launching.losses(launched.resumed.lines))
    assert updates[0] - 1 >= launching.SAVED
    assert updates == list(range(updates[0], launching.UPDATES + 1))


def test_two_launched_processes_train_as_one_does(corpus: Corpus, launched: Launched, tmp_path: Path) -> None:
    alone = train(corpus, tmp_path, *launching.FLAGS, "--update-freq", 2)
    expected = {int(each["num_updates"]): float(each["loss"]) for each in alone.stats("train_inner")}
    found = {**launching.losses(launched.broken.lines), **launching.losses(launched.resumed.lines)}
    assert found == pytest.approx(expected, abs=0.003)


def test_what_is_wrong_with_flags_is_said_when_processes_have_met(corpus: Corpus, tmp_path: Path) -> None:
    flags = (*launching.FLAGS, "--moe-expert-count", 5)
    # What else is in the working directory does not matter.
    (tmp_path / "taskmoe_plugin").mkdir()
    (tmp_path / "taskmoe_plugin" / "__init__.py").write_text("raise ImportError('another one')")
    with launching.start(corpus, tmp_path / "out", *flags, directory=tmp_path) as process:
        lines = launching.finish(process)
    assert process.returncode == 2, lines[-5:]
    assert [line for line in lines if line.startswith("taskmoe: error: --moe-expert-count 5")]
    assert not [line for line in lines if "Traceback" in line]


def test_a_second_training_is_refused_while_one_runs_and_no_process_outlives_the_launcher(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with launching.start(corpus, tmp_path, *launching.FLAGS, "--max-update", 100_000) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if launching.losses([line]))
        with pytest.raises(SystemExit) as exit:
            train(corpus, tmp_path, *launching.FLAGS)
        assert exit.value.code == 1
        assert f"--save-dir {tmp_path}: another training is writing to it" in capsys.readouterr().err
        running = launching.workers(process)
        assert running.keys() == {0, 1}
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in running.values()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [pid for pid in running.values() if Path(f"/proc/{pid}").exists()]
    # The lock has gone with them.
    lock_directory(tmp_path, "--save-dir").close()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--processes", "2"], "launch: give '-- fairseq-train ...' after the flags of launch"),
        (["--processes", "2", "--", "fairseq-generate"], "launch: give '-- fairseq-train ...'"),
        (["--processes", "0", "--", "fairseq-train"], "--processes 0: give at least 1"),
        (["--processes", "2", "--nodes", "0", "--", "fairseq-train"], "--nodes 0: give at least 1"),
        (["--processes", "2", "--node-rank", "1", "--", "fairseq-train"], "--node-rank 1: give a number from 0"),
        (["--processes", "2", "--", "fairseq-train", "--distributed-world-size", "2"], "launch sets this itself"),
        (["--processes", "2", "--", "fairseq-train", "--distributed-rank=1"], "launch sets this itself"),
        (["--processes", "2", "--", "fairseq-train", "--cpu", "--ddp-backend", "fully_sharded"], "needs GPUs"),
        (["--processes", "2", "--", "fairseq-train", "--cpu", "--ddp-backend=pytorch_ddp"], "needs GPUs"),
    ],
)
def test_launch_refuses_what_it_cannot_launch(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["launch", *argv])
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ending", "status", "message"),
    [
        (2, 2, "fairseq-train: process 1 could not start; what is wrong with its flags is written above"),
        (
            1,
            1,
            "fairseq-train: process 1 of 2 ended with status 1 (what it says is above), and the others were stopped",
        ),
        (-15, 1, "fairseq-train: process 1 of 2 was killed by SIGTERM, and the others were stopped"),
    ],
)
def test_launch_says_how_the_first_process_that_failed_ended(
    ending: int, status: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> None:
        failures = [ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file="") for rank, code in failed]
        failures[1].timestamp = failures[0].timestamp - 5
        raise ChildFailedError("fairseq-train", dict(enumerate(failures)))

    failed = [(0, 7), (1, ending)]
    monkeypatch.setattr(torchrun, "main", fail)
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(SystemExit) as exit:
        main(["launch", "--processes", "2", "--", "fairseq-train"])
    assert exit.value.code == status
    assert message in capsys.readouterr().err


def test_launch_ends_with_one_line_when_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(argv: list[str]) -> None:
        raise SignalException("stopped", signal.SIGTERM)

    monkeypatch.setattr(torchrun, "main", interrupt)
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(SystemExit) as exit:
        main(["launch", "--processes", "2", "--", "fairseq-train"])
    assert exit.value.code == 1
    assert "launch: got SIGTERM, and the processes were stopped; start the same command" in capsys.readouterr().err


def test_several_machines_meet_at_the_master(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(torchrun, "main", calls.append)
    monkeypatch.setenv("PYTHONPATH", "")
    command: Any = ["--", "fairseq-train", "data"]
    launch.run(Namespace(processes=8, nodes=4, node_rank=3, master="one.example:1234", command=command))
    assert " ".join(calls[0]) == (
        "--nnodes 4 --node-rank 3 --master-addr one.example --master-port 1234 --nproc-per-node 8 "
        "-m taskmoe_plugin.cli.launched fairseq-train data"
    )
