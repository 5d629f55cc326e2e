"""Checkpoints of all kinds of models, and their subnets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import tasks

from taskmoe_plugin.cli.extract_subnet import main
from tests.helpers.corpus import Corpus
from tests.helpers.tasks import make_args
from tests.helpers.training import MODEL, group_file

POSITIONS = 1024  # that the models have, unless told otherwise
# Not a flag of fairseq's, but one flag less: --share-all-embeddings.
UNSHARED = "unshared"
# Model flags of a checkpoint that several tests start from.
DEFAULT = ("--encoder-normalize-before", "--decoder-normalize-before")


def load(path: Path) -> Any:
    """What a checkpoint holds, read the safe way."""
    return torch.load(path, map_location="cpu", weights_only=True)


def write_model(corpus: Corpus, template: Path, path: Path, *flags: Any, seed: int = 0) -> Path:
    """A checkpoint of a model with the given flags, whose weights are random and large.

    The scores of such a model tell sentences and tasks apart, which those of a briefly trained one hardly do.

    Args:
        corpus: the data.
        template: a checkpoint that training wrote; everything but the model is from there.
        path: the file to write.
        flags: model flags.
        seed: of the weights.
    """
    chosen = [flag for flag in (*MODEL, *flags) if flag != UNSHARED]
    if UNSHARED in flags:
        chosen.remove("--share-all-embeddings")
    args = make_args(corpus, *chosen, "--moe-task-groups", group_file(path.parent))
    model = tasks.setup_task(args).build_model(args)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        # Gates keep to moderate logits, so that no expert's weight is too small to be missed; embeddings to small
        # values, so that what comes out is not just what went in.
        scale = 0.3 if parameter.dim() == 1 or "gate" in name or "embed_tokens" in name else 0.7
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    state = load(template)
    state["cfg"]["model"] = args
    state["model"] = model.state_dict()
    torch.save(state, path)
    return path


def rewrite(path: Path, target: Path, change: Callable[[Any], Any]) -> Path:
    """A copy of a checkpoint with something changed in what it holds."""
    state = load(path)
    change(state)
    torch.save(state, target)
    return target


def extract(corpus: Corpus, path: Path, output_dir: Path, pairs: str, *flags: Any) -> Path:
    """Run ``fairseq-extract-subnet``; returns the directory of the first subnet."""
    main(
        [str(each) for each in (corpus.bin, "--path", path, "--lang-pairs", pairs, "--output-dir", output_dir, *flags)]
    )
    return output_dir / pairs.split(",")[0]


def error_of(
    capsys: pytest.CaptureFixture[str], output_dir: Path, data: Any, path: Any, pairs: str, *flags: Any, status: int = 1
) -> str:
    """The one line that extraction stops with, after nothing was written."""
    before = sorted(output_dir.rglob("*"))
    argv = (data, "--path", path, "--lang-pairs", pairs, "--output-dir", output_dir, *flags)
    with pytest.raises(SystemExit) as stopped:
        main([str(each) for each in argv])
    assert stopped.value.code == status
    assert sorted(output_dir.rglob("*")) == before
    output = capsys.readouterr()
    assert not output.out
    lines = [line for line in output.err.splitlines() if "error: " in line]
    assert len(lines) == 1
    assert "Traceback" not in output.err
    return lines[0]
