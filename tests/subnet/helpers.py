"""Checkpoints of all kinds of models, their subnets, and what stock fairseq makes of these."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq import tasks

from taskmoe_plugin.cli.extract_subnet import main
from tests.helpers.corpus import LANGS, Corpus
from tests.helpers.tasks import LANGTOKS, make_args
from tests.helpers.training import MODEL, group_file

STOCK = Path(__file__).with_name("stock_fairseq.py")
TOLERANCE = 1e-4
# Model flags of a checkpoint that several tests start from.
# Not a flag of fairseq's, but one flag less: --share-all-embeddings.
UNSHARED = "unshared"
DEFAULT = ("--encoder-normalize-before", "--decoder-normalize-before")
Hypotheses = dict[int, tuple[float, str]]


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


def stock_generate_flags(data: Path, path: Any, pair: str, *flags: Any) -> list[str]:
    """Arguments of stock ``fairseq-generate`` for a subnet."""
    source, target = pair.split("-")
    common = (
        data, "--task", "translation_multi_simple_epoch", "--langs", ",".join(LANGS), "--lang-pairs", pair, *LANGTOKS,
        "--cpu", "--num-workers", 0, "--required-batch-size-multiple", 1,
    )  # fmt: skip
    fixed = ("--path", path, "--source-lang", source, "--target-lang", target, "--max-len-b", 12, "--beam", 2)
    return [str(each) for each in (*common, *fixed, *flags)]


def stock_fairseq(commands: Sequence[tuple[str, list[str]]], trusted: bool = False) -> list[Hypotheses]:
    """Run several of fairseq's commands in one process that does not have the plugin.

    Args:
        commands: the tools and their arguments.
        trusted: whether to load unsafely, as stock fairseq needs it for the checkpoints that it has written itself.

    Returns:
        The hypotheses that each printed: score and text by sentence number.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    if trusted:
        environment["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    result = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", str(STOCK)], input=json.dumps(commands), capture_output=True, text=True,
        env=environment, cwd="/", check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    printed = json.loads(result.stdout.splitlines()[-1])
    return [{int(number): (float(score), text) for number, (score, text) in each.items()} for each in printed]


def assert_equal(found: Hypotheses, expected: Hypotheses) -> None:
    """The same hypotheses, and scores within 1e-4."""
    assert {number: text for number, (_, text) in found.items()} == {n: text for n, (_, text) in expected.items()}
    gap = max(abs(found[number][0] - score) for number, (score, _) in expected.items())
    assert gap <= TOLERANCE, gap
