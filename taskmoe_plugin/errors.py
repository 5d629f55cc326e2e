"""What a user can put right, and how a command tells them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from types import TracebackType
from typing import TextIO

PROGRAM = "taskmoe"
USAGE, FAILURE = 2, 1
MOST_NAMES = 20  # that a line lists


class TaskMoEError(Exception):
    """Something a user can put right. Its text is one line that names the file or flag and says what to do.

    Attributes:
        exit_code: the status that a command ends with because of it.
    """

    exit_code = FAILURE


class UsageError(TaskMoEError):
    """A flag, or a combination of flags, that cannot work."""

    exit_code = USAGE


def listed(names: Iterable[str]) -> str:
    """Names with commas between them; of many the first, and how many more there are."""
    names = list(names)
    shown = ", ".join(names[:MOST_NAMES])
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES:,} more"


def raise_all(problems: Sequence[str]) -> None:
    """Raise one error that names everything that is wrong with the flags, if anything is.

    Raises:
        UsageError: there are problems.
    """
    if problems:
        raise UsageError("; also: ".join(problems))


@contextmanager
def one_line_errors(program: str = PROGRAM) -> Iterator[None]:
    """Within the context an error that a user can put right is printed as one line, and ends the process.

    Raises:
        SystemExit: in its place, with its exit code.
    """
    try:
        yield
    except Exception as error:
        found = _root(error)
        if found is None:
            raise
        _exit(program, found, sys.stderr)


def use_one_line_errors(*explain: Callable[[BaseException], TaskMoEError | None]) -> None:
    """Have a command that is not ours (fairseq-train, …) print our errors like the commands that are.

    The interpreter asks ``sys.excepthook`` what to do with an error that ends the process. Errors that are not ours go
    to the hook that was there.

    Args:
        explain: each makes an error of ours of one that is not, if it can; the first that does is heard.
    """
    if isinstance(sys.excepthook, _Hook):
        return
    sys.excepthook = _Hook(sys.excepthook, explain)


class _Hook:
    def __init__(self, following: object, explain: Sequence[Callable[[BaseException], TaskMoEError | None]]) -> None:
        self.following = following
        self.explain = explain

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        found = _root(error) or next(filter(None, (explain(error) for explain in self.explain)), None)
        if found is not None:
            # torch.distributed has what hooks write in a buffer, of which an exit leaves nothing.
            _exit(PROGRAM, found, sys.__stderr__ if isinstance(sys.stderr, StringIO) else sys.stderr)
        self.following(kind, error, trace)  # type: ignore[operator]


def _root(error: BaseException | None) -> TaskMoEError | None:
    """The error of ours among an error and those that led to it: fairseq replaces what loading a model raises."""
    while error is not None:
        if isinstance(error, TaskMoEError):
            # PyTorch's loaders of data hand on an error of theirs with its traceback in its text.
            return _of_process(str(error)) or error
        if type(error).__name__ == "ProcessRaisedException":
            return _of_process(str(error))
        error = error.__cause__ or error.__context__
    return None


def _of_process(text: str) -> TaskMoEError | None:
    """The error of ours that ended a process that fairseq had started: all that is left of it is its traceback."""
    found = re.findall(rf"^{re.escape(__name__)}\.(\w+): (.+)$", text, re.MULTILINE)
    if not found:
        return None
    name, message = found[-1]
    return UsageError(message) if name == UsageError.__name__ else TaskMoEError(message)


def _exit(program: str, error: TaskMoEError, stderr: TextIO | None) -> None:
    if stderr is not None:  # a process whose standard error is closed has none
        print(f"{program}: error: {error}", file=stderr)
    raise SystemExit(error.exit_code)
