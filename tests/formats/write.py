"""Write the small model of the current format that later versions must go on reading.

    python -m tests.formats.write

Run once for each format, when it is new; what it has written is never changed afterwards.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from taskmoe_plugin.models.config import FORMAT
from tests.formats.translating import INPUT, PAIR, translate
from tests.helpers.corpus import LANGS, write_corpus
from tests.helpers.training import WIDER, train

HERE = Path(__file__).parent


def main() -> None:
    """Train, keep what translating needs, and note what it translates to."""
    target = HERE / str(FORMAT)
    target.mkdir()
    with tempfile.TemporaryDirectory() as directory:
        corpus = write_corpus(Path(directory))
        flags = ("--decoder-moe-routing", "target", "--encoder-moe-routing", "token", "--max-update", 600)
        train(corpus, Path(directory), *WIDER, *flags, "--max-epoch", 600, "--no-epoch-checkpoints")
        state = torch.load(Path(directory) / "checkpoint_last.pt", weights_only=True)
        state["last_optimizer_state"] = None
        state["cfg"] = _without_paths(state["cfg"])
        state["model"] = {name: _half(tensor) for name, tensor in state["model"].items()}
        torch.save(state, target / "model.pt")
        for lang in LANGS:
            shutil.copy(corpus.bin / f"dict.{lang}.txt", target)
    expected = {"pair": PAIR, "input": INPUT, "hypotheses": translate(target, target / "model.pt")}
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


def _without_paths(value: Any) -> Any:
    """Flags without the places of the machine that it was written on."""
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items()}
    if isinstance(value, Namespace):
        return Namespace(**_without_paths(vars(value)))
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def _half(tensor: torch.Tensor) -> torch.Tensor:
    # A small file; fairseq loads it into parameters of single precision.
    return tensor.half() if tensor.is_floating_point() else tensor


if __name__ == "__main__":
    main()
