"""fairseq's commands, run within the test's process: the same entry points, without their start-up time."""

from __future__ import annotations

import importlib
import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils

import taskmoe_plugin

USER_DIR = Path(taskmoe_plugin.__file__).parent


@dataclass
class Output:
    """What a command printed and logged."""

    stdout: str = ""
    records: list[tuple[str, str]] = field(default_factory=list)

    def stats(self, name: str) -> list[dict[str, Any]]:
        """The statistics logged as ``train_inner``, ``train``, ``valid`` or a subset's name, as JSON has them."""
        return [json.loads(text) for logger, text in self.records if logger == name and text.startswith("{")]

    def lines(self, kind: str) -> dict[int, list[str]]:
        """The fields of the lines that fairseq-generate marks with a letter, e.g. H, by sentence number."""
        found = {}
        for line in self.stdout.splitlines():
            head, *fields = line.split("\t")
            mark, _, number = head.partition("-")
            if mark == kind and number.isdigit():
                found[int(number)] = fields
        return found

    @property
    def hypotheses(self) -> dict[int, tuple[float, str]]:
        """Score and text of every hypothesis, by sentence number."""
        return {number: (float(score), text) for number, (score, text) in self.lines("H").items()}


class _Recorder(logging.Handler):
    def __init__(self, output: Output) -> None:
        super().__init__(logging.INFO)
        self.output = output

    def emit(self, record: logging.LogRecord) -> None:
        self.output.records.append((record.name, record.getMessage()))


@contextmanager
def _recording(output: Output) -> Iterator[None]:
    # fairseq-validate replaces the handlers of the root logger, so that a recorder there would go.
    root, recorder = logging.getLogger(), _Recorder(output)
    kept, level = list(root.handlers), root.level
    ours = [logging.getLogger(name) for name in ("fairseq", "fairseq_cli")]
    for each in ours:
        each.addHandler(recorder)
        each.setLevel(logging.INFO)
    try:
        yield
    finally:
        for each in ours:
            each.removeHandler(recorder)
            each.setLevel(logging.NOTSET)
        root.handlers[:] = kept
        root.setLevel(level)


@contextmanager
def _ending() -> Iterator[None]:
    """Ends as a process does with an error that the plugin's hook knows."""
    try:
        yield
    except Exception as error:
        if sys.excepthook is not sys.__excepthook__:
            sys.excepthook(type(error), error, error.__traceback__)
        raise


def run(tool: str, *argv: Any, stdin: str = "") -> Output:
    """Run ``fairseq-TOOL`` with arguments.

    Raises:
        SystemExit: the tool exits with a status, as the interpreter would make it for an error of ours.
    """
    command = importlib.import_module(f"fairseq_cli.{tool}")
    # The best score so far is an attribute of the function; a new process would start without.
    vars(checkpoint_utils.save_checkpoint).clear()
    output, printed = Output(), io.StringIO()
    before = sys.argv, sys.stdin
    sys.argv, sys.stdin = [f"fairseq-{tool}", *map(str, argv)], io.StringIO(stdin)
    try:
        with redirect_stdout(printed), _recording(output), _ending():
            command.cli_main()
    finally:
        sys.argv, sys.stdin = before
    output.stdout = printed.getvalue()
    return output
