"""Extraction from beginning to end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from taskmoe_plugin.files.writing import new_directory
from taskmoe_plugin.subnet import ctranslate2_format, fairseq_format, pages
from taskmoe_plugin.subnet.checkpoint import TIED, Checkpoint, sha256
from taskmoe_plugin.subnet.langtokens import prefixes
from taskmoe_plugin.subnet.output import check_free
from taskmoe_plugin.subnet.plan import Plan, make_plan
from taskmoe_plugin.subnet.report import Row, Size, count_parameters, describe_gates, versions, write_json
from taskmoe_plugin.subnet.verify import Verifier
from taskmoe_plugin.subnet.vocabulary import DictionaryReader, Vocabularies, used_symbols
from taskmoe_plugin.subnet.weights import (
    Read,
    Recipe,
    ffn_dims,
    kept_bytes,
    read_weights,
    reader,
    recipes,
)


@dataclass(frozen=True)
class Options:
    """How subnets are written.

    Attributes:
        data: the directories of the binarised data that the model was trained on.
        output_dir: each subnet gets a directory of its own in it.
        padded: whether layers are padded to one width, so that stock fairseq can load them.
        quantization: for CTranslate2, how weights are stored; None: write a fairseq model.
        trim_vocabulary: whether to keep only the pieces that the training data uses.
        dtype: what a fairseq model's weights are stored as; None: as in the checkpoint.
        verify: how many sentences to verify each subnet with; 0: all; None: do not.
        subset: the set that these sentences are from.
        force: whether directories may be replaced.
    """

    data: tuple[Path, ...]
    output_dir: Path
    padded: bool = True
    quantization: str | None = None
    trim_vocabulary: bool = False
    dtype: torch.dtype | None = None
    verify: int | None = None
    subset: str = "test"
    force: bool = False

    @property
    def rounded(self) -> bool:
        """Whether weights lose precision."""
        return self.dtype is not None or self.quantization not in (None, "float32")


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
        TaskMoEError: anything a user can put right. Subnets that were complete by then are kept.
    """
    pages.return_freed_memory()
    checkpoint = Checkpoint.open(path)
    reader = DictionaryReader(checkpoint, options.data)
    jobs = [_job(checkpoint, reader, pairs, options) for pairs in groups or [[pair] for pair in checkpoint.pairs]]
    with _bar(total=path.stat().st_size, desc=f"SHA-256 of {path.name}", unit="B", unit_scale=True) as bar:
        digest = sha256(path, bar.update)
    source = {"path": str(path), "sha256": digest, "bytes": path.stat().st_size}
    verifier = Verifier(checkpoint, options.data, options.subset)
    return [_Extraction(checkpoint, job, options, source, verifier).run() for job in jobs]


def _job(checkpoint: Checkpoint, reader: DictionaryReader, pairs: Sequence[str], options: Options) -> _Job:
    name = "+".join(pairs)
    directory = options.output_dir / name
    check_free(directory, options.force)
    plan = make_plan(checkpoint, pairs)
    if options.quantization:
        ctranslate2_format.check_supported(plan, checkpoint.args, checkpoint.cfg["task"])
    return _Job(name, plan, reader.read(pairs), directory)


@dataclass(frozen=True)
class _Extraction:
    """The making of one subnet."""

    checkpoint: Checkpoint
    job: _Job
    options: Options
    source: dict[str, Any]
    verifier: Verifier

    def run(self) -> Row:
        start = time.monotonic()
        check_free(self.job.directory, self.options.force)
        with new_directory(self.job.directory, str(self.job.directory)) as directory:
            vocabularies, rows = self._vocabulary()
            dims = {name: ffn_dims(self.checkpoint.tensors, stack) for name, stack in self.job.plan.stacks.items()}
            stock = self.job.plan.dense and self.options.padded and not self.options.quantization
            widths = {name: max(own) for name, own in dims.items()} if stock else {}
            making = recipes(self.checkpoint.tensors, self.job.plan, rows, widths, self.options.dtype)
            with self._reader(rows) as read:
                details = self._write(directory, making, read, vocabularies, dims, widths)
            vocabularies.write(directory, restriction=self.options.trim_vocabulary)
            full = Size.of_model(self.checkpoint.tensors)
            subnet = Size(count_parameters(making), (directory / details["file"]).stat().st_size)
            content = self._content(details, full, subnet, vocabularies)
            seconds = time.monotonic() - start
            verified = self._verify(directory, vocabularies)
            write_json(directory / "subnet.json", {**content, **({"verified": verified} if verified else {})})
        return Row(self.job.name, self.job.plan.form, full, subnet, seconds, verified)

    def _vocabulary(self) -> tuple[Vocabularies, dict[str, Tensor]]:
        vocabularies = self.job.vocabularies
        if not self.options.trim_vocabulary:
            return vocabularies, {}
        sides: list[tuple[Tensor, Tensor]] = []
        for pair in self.job.plan.pairs:
            progress = partial(_bar, desc=f"pieces of {pair}", unit=" sentences")
            sides.append(used_symbols(self.options.data, pair, vocabularies, progress))
        source, target = (torch.stack(side).any(dim=0) for side in zip(*sides))
        kept = vocabularies.keep((source, target))
        return vocabularies.trimmed(kept), dict(zip(TIED, (kept[0], kept[1], kept[1])))

    @contextmanager
    def _reader(self, rows: dict[str, Tensor]) -> Iterator[Read]:
        """Reads tensors of the full model, with a progress bar."""
        tensors, plan = self.checkpoint.tensors, self.job.plan
        with _bar(total=kept_bytes(tensors, plan, rows), desc=self.job.name, unit="B", unit_scale=True) as bar:
            yield reader(tensors, rows, bar.update)

    def _write(
        self,
        directory: Path,
        making: dict[str, Recipe],
        read: Read,
        vocabularies: Vocabularies,
        dims: dict[str, list[int]],
        widths: dict[str, int],
    ) -> dict[str, Any]:
        """Write the model; returns what ``subnet.json`` says of its format."""
        checkpoint, plan, quantization = self.checkpoint, self.job.plan, self.options.quantization
        if quantization:
            ctranslate2_format.write_model(directory, checkpoint.args, making, read, vocabularies, quantization)
            return {"format": "ctranslate2", "file": "model.bin", "quantization": quantization, "ffn_dims": dims}
        if widths:
            args = fairseq_format.stock_args(checkpoint.args, widths)
        else:
            args = fairseq_format.plugin_args(checkpoint.args, plan, dims)
        fairseq_format.write_model(directory / "model.pt", checkpoint, plan, args, read_weights(making, read))
        padding = {"padded_to": widths} if widths else {}
        return {"format": "fairseq", "file": "model.pt", "arch": args.arch, "ffn_dims": dims, **padding}

    def _content(self, details: dict[str, Any], full: Size, subnet: Size, kept: Vocabularies) -> dict[str, Any]:
        plan, before = self.job.plan, self.job.vocabularies
        task = self.checkpoint.cfg["task"]
        return {
            "pairs": list(plan.pairs),
            "form": plan.form,
            **details,
            "source": self.source,
            "full_model": {"parameters": full.parameters, "bytes": full.bytes},
            "subnet": {"parameters": subnet.parameters, "bytes": subnet.bytes},
            "stacks": {name: stack.fate.value for name, stack in plan.stacks.items()},
            "gates": describe_gates(plan),
            "vocabulary": {
                "source": {"symbols": len(kept.source.symbols), "of": len(before.source.symbols)},
                "target": {"symbols": len(kept.target.symbols), "of": len(before.target.symbols)},
            },
            "prefixes": {pair: dict(zip(("source", "target"), prefixes(task, pair))) for pair in plan.pairs},
            "versions": versions("taskmoe_plugin", "torch", "ve-fairseq", "fairseq", "ctranslate2"),
        }

    def _verify(self, directory: Path, vocabularies: Vocabularies) -> dict[str, str]:
        if self.options.verify is None:
            return {}
        verify = partial(self.verifier.verify, directory, self.job.vocabularies, vocabularies)
        return {pair: verify(pair, self.options.verify or None, self.options.rounded) for pair in self.job.plan.pairs}


def _bar(loop: Iterable[Any] | None = None, **options: Any) -> Any:
    # Shown after a second, on a terminal.
    return tqdm(loop, delay=1, leave=False, disable=None, **options)
