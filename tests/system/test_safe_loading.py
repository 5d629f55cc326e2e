"""Our checkpoints load with PyTorch's safe loading, and a pickle that wants more is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from tests.helpers.corpus import Corpus
from tests.helpers.training import generate, generate_flags, train


class Foreign:
    """Its unpickling would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "was here")


@pytest.mark.parametrize("flags", [("--eval-bleu",), ("--fp16", "--fp16-no-flatten-grads"), ("--store-ema",)], ids=str)
def test_a_checkpoint_holds_tensors_flags_and_nothing_else(corpus: Corpus, tmp_path: Path, flags: tuple) -> None:
    train(corpus, tmp_path, *flags)
    path = tmp_path / "checkpoint_last.pt"
    assert torch.load(path, weights_only=True)["cfg"]["model"].taskmoe_langs == "en,de,fr"
    allowed = {f"{Namespace.__module__}.{Namespace.__qualname__}"}
    assert set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) <= allowed


def test_a_checkpoint_that_wants_more_is_refused(corpus: Corpus, checkpoint: Path, tmp_path: Path, capsys) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    saved["extra_state"]["foreign"] = Foreign(tmp_path / "trace")
    path = tmp_path / "foreign.pt"
    torch.save(saved, path)
    with pytest.raises(SystemExit):
        generate(corpus, path, "en-de")
    assert f"{path}: holds Python objects that safe loading refuses" in capsys.readouterr().err
    assert not (tmp_path / "trace").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "trace").exists()


def test_no_variable_turns_safe_loading_off(corpus: Corpus, checkpoint: Path, tmp_path: Path) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    saved["extra_state"]["foreign"] = Foreign(tmp_path / "trace")
    path = tmp_path / "foreign.pt"
    torch.save(saved, path)
    script = "import sys; from fairseq_cli.generate import cli_main; sys.argv[0] = 'fairseq-generate'; cli_main()"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *generate_flags(corpus, path, "en-de")],
        env={**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert not (tmp_path / "trace").exists()
