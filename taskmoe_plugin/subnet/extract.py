"""Extraction from beginning to end."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from taskmoe_plugin.errors import TaskMoEError
from taskmoe_plugin.files.writing import new_directory
from taskmoe_plugin.formats import CTRANSLATE2, DESCRIPTION, subnet_name
from taskmoe_plugin.models.task_table import split_pair
from taskmoe_plugin.subnet import (
    argos_format,
    ctranslate2_format,
    fairseq_format,
    huggingface_format,
    huggingface_tokenizer,
    model_card,
    pages,
    sentencepiece_model,
)
from taskmoe_plugin.subnet.checkpoint import TIED, Checkpoint, sha256
from taskmoe_plugin.subnet.langtokens import check_built_in, left_open, prefixes
from taskmoe_plugin.subnet.output import check_free, existing_row
from taskmoe_plugin.subnet.plan import Plan, Planner
from taskmoe_plugin.subnet.report import Row, Size, count_parameters, describe_gates, versions, write_json
from taskmoe_plugin.subnet.sentencepiece_model import PieceModel
from taskmoe_plugin.subnet.verify import Verifier, find_set
from taskmoe_plugin.subnet.vocabulary import DictionaryReader, Vocabularies, train_files, used_symbols
from taskmoe_plugin.subnet.weights import (
    Read,
    Recipe,
    build_recipes,
    ffn_dims,
    kept_bytes,
    read_weights,
    reader,
)

# A SentencePiece model that has fewer of a dictionary's pieces is another one's.
FEWEST_KNOWN = 0.5


@dataclass(frozen=True)
class Options:
    """How subnets are written.

    Attributes:
        data: the directories of the binarised data that the model was trained on.
        output_dir: each subnet gets a directory of its own in it.
        format: what to write, one of ``FORMATS``.
        padded: for fairseq, whether layers are padded to one width, so that its own model can load them.
        quantization: for CTranslate2, how weights are stored.
        sentencepiece_model: the SentencePiece model of the data, which subnets take along; None: they do without.
        trim_vocabulary: whether to keep only the pieces that the training data uses.
        dtype: for fairseq and Hugging Face, what weights are stored as; None: as in the checkpoint.
        verify: how many sentences to verify each subnet with; 0: all; None: do not.
        subset: the set that these sentences are from.
        license: the licence that model cards name.
        force: whether directories may be replaced.
        skip_existing: whether subnets that were made with the same options are left as they are.
    """

    data: tuple[Path, ...]
    output_dir: Path
    format: str = "fairseq"
    padded: bool = True
    quantization: str = "float32"
    sentencepiece_model: Path | None = None
    trim_vocabulary: bool = False
    dtype: torch.dtype | None = None
    verify: int | None = None
    subset: str = "test"
    license: str | None = None
    force: bool = False
    skip_existing: bool = False

    def described(self, pairs: Sequence[str]) -> dict[str, Any]:
        """What a subnet of some pairs depends on, besides the checkpoint: for ``subnet.json``."""
        pieces, trained = self.sentencepiece_model, {}
        if self.trim_vocabulary:
            sides = {(pair, lang) for pair in pairs for lang in split_pair(pair)}
            files = {f"{file}.bin" for side in sides for file in train_files(self.data, *side)}
            trained = {Path(file).name: Path(file).stat().st_size for file in sorted(files)}
        verify = {"sentences": self.verify or "all", "subset": self.subset}
        return {
            "format": self.format,
            "padded": self.padded,
            "quantization": self.quantization,
            "sentencepiece_model": None if pieces is None else hashlib.sha256(pieces.read_bytes()).hexdigest(),
            "trim_vocabulary": self.trim_vocabulary,
            "training_data": trained,
            "verify": None if self.verify is None else verify,
            "dtype": None if self.dtype is None else str(self.dtype).removeprefix("torch."),
            "license": self.license,
        }

    @property
    def rounded(self) -> bool:
        """Whether weights lose precision."""
        return self.dtype is not None or self.quantization != "float32"

    @property
    def in_ctranslate2(self) -> bool:
        """Whether it is CTranslate2 that runs what is written."""
        return self.format in CTRANSLATE2


@dataclass(frozen=True)
class _Job:
    """One subnet to be made."""

    name: str
    plan: Plan
    vocabularies: Vocabularies
    directory: Path


def extract(
    path: Path,
    groups: Sequence[Sequence[str]] | None,
    options: Options,
    done: Callable[[Row], object] = lambda row: None,
) -> list[Row]:
    """Extract subnets and write a directory for each.

    Args:
        path: the checkpoint.
        groups: the pairs of each subnet; None: one subnet for every trained pair.
        options: how.
        done: told of each subnet when it is there.

    Returns:
        One line of the table for each subnet.

    Raises:
        TaskMoEError: anything a user can put right. Subnets that were complete by then are kept.
    """
    pages.return_freed_memory()
    checkpoint = Checkpoint.open(path, f"--path {path}")
    pieces = PieceModel.read(options.sentencepiece_model) if options.sentencepiece_model else None
    reader = DictionaryReader(checkpoint, options.data)
    planner = Planner(checkpoint)
    jobs = [
        _job(checkpoint, planner, reader, pairs, pieces, options)
        for pairs in groups or [[pair] for pair in checkpoint.pairs]
    ]
    with _bar(total=path.stat().st_size, desc=f"SHA-256 of {path.name}", unit="B", unit_scale=True) as bar:
        digest = sha256(path, bar.update)
    source = {"file": path.name, "sha256": digest, "bytes": path.stat().st_size}
    verifier = Verifier(checkpoint, options.data, options.subset)
    there = [_existing(job, options, source) for job in jobs]
    rows = []
    for job, existing in zip(jobs, there):
        row = existing or _Extraction(checkpoint, job, pieces, options, source, verifier).run()
        rows.append(row)
        done(row)
    return rows


def _existing(job: _Job, options: Options, source: dict[str, Any]) -> Row | None:
    """The line of a subnet that is there already, if it is what this extraction would make and may be left."""
    if not options.skip_existing:
        return None
    pairs = list(job.plan.pairs)
    row = existing_row(job.directory, job.name, {"pairs": pairs, "source": source, "options": options.described(pairs)})
    if row is None:
        check_free(job.directory, options.force, skipping=True)
    return row


def _job(
    checkpoint: Checkpoint,
    planner: Planner,
    reader: DictionaryReader,
    pairs: Sequence[str],
    pieces: PieceModel | None,
    options: Options,
) -> _Job:
    name = subnet_name(pairs)
    directory = options.output_dir / name
    if not options.skip_existing:
        check_free(directory, options.force)
    plan = planner.plan(pairs)
    args, task = checkpoint.args, checkpoint.cfg["task"]
    check_built_in(task, pairs, options.format)
    if options.in_ctranslate2:
        ctranslate2_format.check_supported(plan, args, task, options.format)
    if options.format == "argos":
        argos_format.check_supported(pairs)
    if options.format == "huggingface":
        huggingface_format.check_supported(plan, args, task)
    for pair in pairs:
        if options.verify is not None:
            find_set(options.data, options.subset, pair)
        if options.trim_vocabulary:
            for lang in split_pair(pair):
                train_files(options.data, pair, lang)
    vocabularies = reader.read(pairs)
    if pieces:
        _check_pieces(pieces, vocabularies, options)
    return _Job(name, plan, vocabularies, directory)


def _check_pieces(pieces: PieceModel, vocabularies: Vocabularies, options: Options) -> None:
    for vocabulary in (vocabularies.source, vocabularies.target):
        known = pieces.share_known(vocabulary.pieces())
        if known < FEWEST_KNOWN:
            raise TaskMoEError(
                f"--sentencepiece-model {options.sentencepiece_model}: has {known:.0%} of the pieces in the "
                f"dictionaries of {options.data[0]}; give the model that this data was cut into pieces with"
            )
    if options.format == "huggingface":
        huggingface_tokenizer.check_supported(pieces)


@dataclass(frozen=True)
class _Extraction:
    """Makes one subnet."""

    checkpoint: Checkpoint
    job: _Job
    pieces: PieceModel | None
    options: Options
    source: dict[str, Any]
    verifier: Verifier

    def run(self) -> Row:
        start = time.monotonic()
        check_free(self.job.directory, self.options.force)
        with new_directory(self.job.directory, str(self.job.directory), self.options.force) as directory:
            vocabularies, rows = self._vocabulary()
            pieces = self._pieces(vocabularies)
            dims = {name: ffn_dims(self.checkpoint.tensors, stack) for name, stack in self.job.plan.stacks.items()}
            stock = self.job.plan.dense and self.options.padded and not self.options.in_ctranslate2
            widths = {name: max(own) for name, own in dims.items()} if stock else {}
            recipes = build_recipes(self.checkpoint.tensors, self.job.plan, rows, widths, self.options.dtype)
            # What goes into a package is not left beside it.
            model = directory / "model" if self.options.format == "argos" else directory
            model.mkdir(exist_ok=True)
            with self._reader(rows) as read:
                details = self._write(model, recipes, read, vocabularies, pieces, dims, widths)
            full, parameters = Size.of_model(self.checkpoint.tensors), count_parameters(recipes)
            seconds = time.monotonic() - start
            verified = self._verify(model, vocabularies)
            content = self._content(details, full, parameters, vocabularies, pieces)
            content |= {"verified": verified} if verified else {}
            card = model_card.model_card(content, self.options.license)
            if self.options.format == "argos":
                content["file"] = self._pack(directory, model, pieces, card)
            subnet = Size(parameters, (directory / content["file"]).stat().st_size)
            content["subnet"]["bytes"] = subnet.bytes
            write_json(directory / DESCRIPTION, content)
            (directory / model_card.NAME).write_text(card, encoding="utf-8")
        return Row(self.job.name, self.job.plan.form, full, subnet, seconds, verified)

    @property
    def _first(self) -> tuple[list[str], list[str]]:
        """The language tokens that source and target of the first pair begin with."""
        return prefixes(self.checkpoint.cfg["task"], self.job.plan.pairs[0])

    def _pieces(self, vocabularies: Vocabularies) -> PieceModel | None:
        if self.pieces is None or not self.options.trim_vocabulary:
            return self.pieces
        return self.pieces.restricted(vocabularies.source.pieces())

    def _pack(self, directory: Path, model: Path, pieces: PieceModel | None, card: str) -> str:
        """Make a package of a model, which goes; returns the package's name."""
        assert pieces is not None
        [pair] = self.job.plan.pairs
        package = argos_format.pack(directory, pair, model, pieces, self._first[1], card)
        shutil.rmtree(model)
        return package.name

    def _vocabulary(self) -> tuple[Vocabularies, dict[str, Tensor]]:
        vocabularies = self.job.vocabularies
        if not self.options.trim_vocabulary:
            return vocabularies, {}
        sides: list[tuple[Tensor, Tensor]] = []
        for pair in self.job.plan.pairs:
            progress = partial(_bar, desc=f"pieces of {pair}", unit=" blocks")
            sides.append(used_symbols(self.options.data, pair, vocabularies, progress))
        source, target = (torch.stack(side).any(dim=0) for side in zip(*sides))
        kept = vocabularies.keep((source, target))
        return vocabularies.trimmed(kept), dict(zip(TIED, (kept[0], kept[1], kept[1])))

    @contextmanager
    def _reader(self, rows: dict[str, Tensor]) -> Iterator[Read]:
        """Reads tensors of the full model, with a progress bar."""
        tensors, plan = self.checkpoint.tensors, self.job.plan
        with _bar(total=kept_bytes(tensors, plan, rows), desc=self.job.name, unit="B", unit_scale=True) as bar:
            yield reader(tensors, plan, rows, bar.update)

    def _write(
        self,
        directory: Path,
        recipes: dict[str, Recipe],
        read: Read,
        vocabularies: Vocabularies,
        pieces: PieceModel | None,
        dims: dict[str, list[int]],
        widths: dict[str, int],
    ) -> dict[str, Any]:
        """Write the model; returns what ``subnet.json`` says of its format."""
        checkpoint, plan, format = self.checkpoint, self.job.plan, self.options.format
        if format in ("fairseq", "ctranslate2"):
            vocabularies.write(directory, restriction=self.options.trim_vocabulary)
        if pieces and format != "argos":
            (directory / sentencepiece_model.NAME).write_bytes(pieces.serialized())
        if self.options.in_ctranslate2:
            quantization = self.options.quantization
            ctranslate2_format.write_model(
                directory, checkpoint.args, recipes, read, vocabularies, self._first[0], quantization
            )
            return {"format": format, "file": "model.bin", "quantization": quantization, "ffn_dims": dims}
        if widths:
            args = fairseq_format.stock_args(checkpoint.args, widths)
        else:
            args = fairseq_format.plugin_args(checkpoint.args, plan, dims)
        weights, padding = read_weights(recipes, read), {"padded_to": widths} if widths else {}
        if format == "huggingface":
            assert pieces is not None
            huggingface_format.write_model(directory, args, weights, vocabularies.source, pieces, self._first)
            return {"format": format, "file": huggingface_format.FILE, "ffn_dims": dims, **padding}
        fairseq_format.write_model(directory / "model.pt", checkpoint, plan, args, weights)
        return {"format": format, "file": "model.pt", "arch": args.arch, "ffn_dims": dims, **padding}

    def _content(
        self, details: dict[str, Any], full: Size, parameters: int, kept: Vocabularies, pieces: PieceModel | None
    ) -> dict[str, Any]:
        plan, before, args = self.job.plan, self.job.vocabularies, self.checkpoint.args
        return {
            "pairs": list(plan.pairs),
            "form": plan.form,
            **details,
            "source": self.source,
            "options": self.options.described(plan.pairs),
            "full_model": {"parameters": full.parameters, "bytes": full.bytes},
            "subnet": {"parameters": parameters},
            "stacks": {name: stack.form.value for name, stack in plan.stacks.items()},
            "gates": describe_gates(plan),
            "vocabulary": {
                "source": {"symbols": len(kept.source.symbols), "of": len(before.source.symbols)},
                "target": {"symbols": len(kept.target.symbols), "of": len(before.target.symbols)},
            },
            "sentencepiece_model": sentencepiece_model.NAME if pieces and self.options.format != "argos" else None,
            "max_positions": {"source": args.max_source_positions, "target": args.max_target_positions},
            "prefixes": left_open(self.checkpoint.cfg["task"], plan.pairs, self.options.format),
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
