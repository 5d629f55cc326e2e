"""The README's client translates raw text to raw text with CTranslate2 and SentencePiece alone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.numbers import write_numbers
from tests.helpers.training import train
from tests.subnet.helpers import extract

pytest.importorskip("ctranslate2")
README = Path(__file__).parents[2] / "README.md"


def test_the_client_in_the_readme_runs(tmp_path: Path) -> None:
    (client,) = re.findall(r"```python\n(import ctranslate2.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    corpus = write_numbers(tmp_path, train=200, test=5)
    pairs = ("--langs", "en,de,fr", "--lang-pairs", "en-de,de-en,en-fr,fr-en")
    train(corpus, tmp_path / "model", *pairs, "--max-update", 2, "--no-epoch-checkpoints")
    flags = ("--format", "ctranslate2", "--quantization", "int8")
    extract(corpus, tmp_path / "model" / "checkpoint_last.pt", tmp_path / "client", "en-de", *flags)
    shutil.copy(corpus.raw / "pieces.model", tmp_path / "client" / "spm.model")
    finished = subprocess.run(
        [sys.executable, "-c", client], cwd=tmp_path / "client", capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    # Text, without pieces' marks and language tokens.
    assert finished.stdout.strip()
    assert not re.search("▁|__", finished.stdout)
