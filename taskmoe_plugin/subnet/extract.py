"""Extraction from beginning to end."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from taskmoe_plugin.subnet import fairseq_format
from taskmoe_plugin.subnet.checkpoint import TIED, Checkpoint, sha256
from taskmoe_plugin.subnet.output import check_free, new_directory
from taskmoe_plugin.subnet.plan import Plan, make_plan
from taskmoe_plugin.subnet.report import Row, Size, gates_of, versions, write_json
from taskmoe_plugin.subnet.vocabulary import Vocabularies, used_symbols
from taskmoe_plugin.subnet.weights import kept_bytes, read_weights


@dataclass(frozen=True)
class Options:
    """How subnets are written.

    Attributes:
        data: the directories of the binarised data that the model was trained on.
        output_dir: each subnet gets a directory of its own in it.
        padded: whether layers are padded to one width, so that stock fairseq can load them.
        trim_vocabulary: whether to keep only the pieces that the training data uses.
        dtype: what weights are stored as; None: as in the checkpoint.
        force: whether directories may be replaced.
    """

    data: tuple[Path, ...]
    output_dir: Path
    padded: bool = True
    trim_vocabulary: bool = False
    dtype: torch.dtype | None = None
    force: bool = False


@dataclass(frozen=True)
class _Job:
    """One subnet to be made."""

    name: str
    plan: Plan
    vocabularies: Vocabularies
    directory: Path


def extract(path: Path, groups: Sequence[Sequence[str]] | None, options: Options) -> list[Row]:
    """Extract subnets and write a directory for each.

    Args:
        path: the checkpoint.
        groups: the pairs of each subnet; None: one subnet for every trained pair.
        options: how.

    Returns:
        One line of the table for each subnet.

    Raises:
        SubnetError: anything a user can put right. Subnets that were complete by then are kept.
    """
    checkpoint = Checkpoint.open(path)
    jobs = [_job(checkpoint, pairs, options) for pairs in groups or [[pair] for pair in checkpoint.pairs]]
    with _bar(path.stat().st_size, f"SHA-256 of {path.name}", unit="B", unit_scale=True) as bar:
        digest = sha256(path, bar.update)
    source = {"path": str(path), "sha256": digest, "bytes": path.stat().st_size}
    return [_extract(checkpoint, job, options, source) for job in jobs]


def _job(checkpoint: Checkpoint, pairs: Sequence[str], options: Options) -> _Job:
    name = "+".join(pairs)
    directory = options.output_dir / name
    check_free(directory, options.force)
    return _Job(name, make_plan(checkpoint, pairs), Vocabularies.load(checkpoint, options.data, pairs), directory)


def _extract(checkpoint: Checkpoint, job: _Job, options: Options, source: dict[str, Any]) -> Row:
    start = time.monotonic()
    plan, vocabularies, rows = job.plan, job.vocabularies, {}
    if options.trim_vocabulary:
        kept = vocabularies.keep(_used(job, options))
        vocabularies, rows = vocabularies.trimmed(kept), _rows_of(checkpoint, kept)
    with new_directory(job.directory, options.force) as directory:
        total = kept_bytes(checkpoint.tensors, plan, rows)
        with _bar(total, job.name, unit="B", unit_scale=True) as bar:
            weights = read_weights(checkpoint.tensors, plan, rows, options.dtype, bar.update)
        full, own = Size.of_model(checkpoint.tensors), Size.of_weights(weights)
        args, padding = _layout(checkpoint, plan, weights, options)
        padded = Size.of_weights(weights)
        fairseq_format.write_checkpoint(directory / "model.pt", checkpoint, plan, args, weights)
        vocabularies.write(directory, restriction=options.trim_vocabulary)
        file = directory / "model.pt"
        written = Size(padded.parameters, file.stat().st_size)
        write_json(
            directory / "subnet.json",
            {
                "pairs": list(plan.pairs),
                "form": plan.form,
                "format": "fairseq",
                "arch": args.arch,
                "source": source,
                "stacks": {name: stack.fate.value for name, stack in plan.stacks.items()},
                "gates": gates_of(plan),
                "full_model": {"parameters": full.parameters, "bytes": full.bytes},
                "subnet": {"parameters": written.parameters, "bytes": written.bytes},
                "padding": padding and {**padding, "parameters": padded.parameters - own.parameters},
                "vocabulary": _vocabulary(job.vocabularies, vocabularies),
                "versions": versions("taskmoe_plugin", "torch", "ve-fairseq", "fairseq"),
            },
        )
    return Row(job.name, plan.form, full, written, time.monotonic() - start)


def _layout(
    checkpoint: Checkpoint, plan: Plan, weights: dict[str, Tensor], options: Options
) -> tuple[Namespace, dict[str, Any] | None]:
    if not (plan.dense and options.padded):
        return fairseq_format.plugin_args(checkpoint.args, plan, weights), None
    dims = {name: fairseq_format.ffn_dims(weights, stack) for name, stack in plan.stacks.items()}
    widths = fairseq_format.pad_layers(weights, plan)
    return fairseq_format.stock_args(checkpoint.args, widths), {"from": dims, "to": widths}


def _used(job: _Job, options: Options) -> tuple[Tensor, Tensor]:
    sides: list[tuple[Tensor, Tensor]] = []
    for pair in job.plan.pairs:
        progress = lambda loop, pair=pair: _bar(len(loop), f"pieces of {pair}", loop, unit="sentences")  # noqa: E731
        sides.append(used_symbols(options.data, pair, job.vocabularies, progress))
    source, target = (torch.stack(side).any(dim=0) for side in zip(*sides))
    return source, target


def _rows_of(checkpoint: Checkpoint, kept: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return dict(zip(TIED, (kept[0], kept[1], kept[1])))


def _vocabulary(full: Vocabularies, kept: Vocabularies) -> dict[str, Any]:
    sides = {"source": (full.source, kept.source), "target": (full.target, kept.target)}
    return {name: {"symbols": len(after.symbols), "of": len(before.symbols)} for name, (before, after) in sides.items()}


def _bar(total: int, name: str, loop: Any = None, **options: Any) -> Any:
    return tqdm(loop, total=total, desc=name, delay=1, leave=False, **options)
