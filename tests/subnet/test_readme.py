"""The clients in the documentation translate raw text to raw text, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.corpus import Corpus
from tests.subnet.helpers import extract
from tests.subnet.peers import PEERS, require

ROOT = Path(__file__).parents[2]


def client(path: str, first: str) -> str:
    """The Python program in a document that begins with an import."""
    text = (ROOT / path).read_text(encoding="utf-8")
    (found,) = re.findall(rf"```python\n({re.escape(first)}.*?)```", text, re.DOTALL)
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("path", "first", "format", "directory", "blocked"),
    [
        ("README.md", "import ctranslate2", "ctranslate2", "subnets", ("fairseq", "torch")),
        ("docs/extraction.md", "from fairseq", "fairseq", "subnets", ("taskmoe_plugin",)),
        ("docs/extraction.md", "from transformers", "huggingface", "hf", ("fairseq", "torchaudio")),
    ],
    ids=lambda value: value if value in ("ctranslate2", "fairseq", "huggingface") else "",
)
def test_a_client_runs_as_it_is_printed(
    numbers: Corpus, learned_numbers: Path, tmp_path: Path, path: str, first: str, format: str, directory: str,
    blocked: tuple[str, ...],
) -> None:  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": ""}
    if format == "huggingface":
        require("transformers")
        environment["PYTHONPATH"] = str(PEERS)
    options = ("--format", format, "--sentencepiece-model", numbers.raw / "pieces.model")
    extract(numbers, learned_numbers, tmp_path / directory, "en-de", *options)
    script = f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n{client(path, first)}"
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    # Text, without pieces' marks and language tokens.
    *_, line = finished.stdout.splitlines()
    assert re.search(r"\w{3}", line)
    assert not re.search("▁|__", line)
