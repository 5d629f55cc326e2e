"""Errors that fairseq lets through while it loads a checkpoint become lines that name it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from taskmoe_plugin.errors import TaskMoEError, UsageError
from taskmoe_plugin.tasks.damaged_files import explain


def raised(error: BaseException, path: Path, module: str = "fairseq.trainer", then: str = "") -> BaseException:
    """An error that left fairseq's ``load_checkpoint``, raised there or by a function of another module."""

    def call(name: str, code: str, **variables: Any) -> Any:
        space: dict[str, Any] = {"__name__": name, **variables}
        exec(code, space)
        return space["load_checkpoint"]

    inner = call(then or "torch", "def load_checkpoint(filename):\n    raise error", error=error)
    outer = call(module, "def load_checkpoint(filename):\n    inner(filename)", inner=inner)
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        outer(str(path))
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save({}, tmp_path / "x.pt")
    return tmp_path / "x.pt"


def test_what_fairseq_compares_is_told(path: Path) -> None:
    said = "Optimizer does not match; please reset the optimizer (--reset-optimizer). FairseqAdam vs FairseqNAG"
    found = explain(raised(AssertionError(said), path))
    assert isinstance(found, UsageError)
    assert str(found) == f"{path}: o{said[1:]}"


@pytest.mark.parametrize("then", ["", "fairseq.models.fairseq_model"])
def test_weights_of_another_model_are_told(path: Path, then: str) -> None:
    with pytest.raises(RuntimeError) as misfit:
        nn.Linear(2, 3).load_state_dict(nn.Linear(2, 4).state_dict())
    hidden = Exception(
        f"Cannot load model parameters from checkpoint {path}; please ensure that the architectures match."
    )
    hidden.__context__ = misfit.value
    for error in (hidden, misfit.value):
        found = explain(raised(error, path, then=then))
        assert isinstance(found, UsageError)
        assert str(found).startswith(f"{path}: its weights do not fit the model (size mismatch for weight: ")


def test_a_file_that_cannot_be_loaded_is_told_with_its_reason(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])
    for error in (RuntimeError("PytorchStreamReader failed"), EOFError()):
        assert str(explain(raised(error, path))) == f"{path}: truncated: its end is missing; copy it again"


def test_another_file_is_told(path: Path) -> None:
    found = explain(raised(KeyError("extra_state"), path))
    assert isinstance(found, TaskMoEError)
    assert str(found) == f"{path}: no checkpoint that fairseq can use; give one that training wrote"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), SystemExit(2)])
def test_what_is_not_of_the_file_is_left_alone(path: Path, error: BaseException) -> None:
    assert explain(raised(error, path)) is None


@pytest.mark.parametrize("where", [{"module": "elsewhere"}, {"then": "taskmoe_plugin.moe.experts"}])
def test_errors_of_something_else_are_left_alone(path: Path, where: dict[str, str]) -> None:
    assert explain(raised(KeyError("x"), path, **where)) is None


@pytest.mark.parametrize("flag", [["--path", "{}"], ["--path={}"]], ids=str)
def test_whatever_fails_where_the_model_is_damaged_is_its_damage(
    path: Path, flag: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = path.with_name("other.pt")
    torch.save({"flag": 1}, other)
    content = other.read_bytes().replace(b"flag", b"flab")
    other.write_bytes(content)
    monkeypatch.setattr("sys.argv", ["fairseq-validate", "data", *(each.format(f"{path}:{other}") for each in flag)])
    found = explain(AttributeError("'Namespace' object has no attribute 'flag'"))
    assert str(found).startswith(f"{other}: damaged (Bad CRC-32")
    monkeypatch.setattr("sys.argv", ["fairseq-validate", "data", "--path", str(path)])
    assert explain(AttributeError("'Namespace' object has no attribute 'flag'")) is None
