"""Errors of ours are exceptions for programs and one line for users of a command."""

from __future__ import annotations

import subprocess
import sys

import pytest
from torch import multiprocessing

from taskmoe_plugin import errors
from taskmoe_plugin.errors import TaskMoEError, UsageError, listed, one_line_errors, raise_all


@pytest.mark.parametrize(("error", "status"), [(UsageError("--flag: wrong"), 2), (TaskMoEError("file: broken"), 1)])
def test_a_command_prints_one_line_and_exits(capsys: pytest.CaptureFixture[str], error: Exception, status: int) -> None:
    with pytest.raises(SystemExit) as exit, one_line_errors("taskmoe"):
        raise error
    assert exit.value.code == status
    assert capsys.readouterr().err == f"taskmoe: error: {error}\n"


def test_other_errors_pass(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), one_line_errors():
        _ = 1 / 0
    assert not capsys.readouterr().err


def replaced() -> None:
    try:
        raise UsageError("--langs: other")
    except Exception:
        raise Exception("Cannot load model parameters from checkpoint") from None


def test_an_error_that_fairseq_has_replaced_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit, one_line_errors():
        replaced()
    assert exit.value.code == 2
    assert capsys.readouterr().err == "taskmoe: error: --langs: other\n"


def _fail_in_process(rank: int) -> None:
    raise UsageError("--moe-top-k 5: too many")


def test_an_error_of_a_process_that_fairseq_started_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit, one_line_errors():
        multiprocessing.spawn(_fail_in_process, nprocs=1)
    assert exit.value.code == 2
    assert capsys.readouterr().err == "taskmoe: error: --moe-top-k 5: too many\n"


PROGRAM = """
from taskmoe_plugin.errors import UsageError, use_one_line_errors
use_one_line_errors()
use_one_line_errors()
raise {}
"""


def run_program(raised: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM.format(raised)], capture_output=True, text=True)


def test_a_command_that_is_not_ours_prints_one_line_too() -> None:
    done = run_program("UsageError('--flag: wrong')")
    assert done.returncode == 2
    assert done.stderr == "taskmoe: error: --flag: wrong\n"


def test_a_command_that_is_not_ours_keeps_its_other_errors() -> None:
    done = run_program("ZeroDivisionError('oh')")
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: oh\n")


def test_all_problems_are_in_one_message() -> None:
    raise_all([])
    with pytest.raises(UsageError) as raised:
        raise_all(["--a 1: wrong", "--b 2: wrong"])
    assert str(raised.value) == "--a 1: wrong; also: --b 2: wrong"


def test_nothing_is_printed_by_an_error_in_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert not isinstance(UsageError(""), SystemExit)
    assert TaskMoEError("").exit_code == errors.FAILURE
    assert not capsys.readouterr().err


def test_of_many_names_a_line_lists_the_first() -> None:
    assert listed(["en-de", "de-en"]) == "en-de, de-en"
    line = listed(str(number) for number in range(10_000))
    assert line.startswith("0, 1, 2, ")
    assert line.endswith(", 19 and 9,980 more")
