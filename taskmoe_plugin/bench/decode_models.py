"""The models that ``taskmoe bench decode`` compares, made of one checkpoint."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from fairseq import options, tasks
from fairseq.data import Dictionary, data_utils, indexed_dataset
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer

from taskmoe_plugin.bench.model_args import moe_args
from taskmoe_plugin.convert.conversion import run_conversion
from taskmoe_plugin.convert.quantize import quantize_experts
from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.files.binarised import check_pieces, check_set
from taskmoe_plugin.files.dictionaries import read_dictionary
from taskmoe_plugin.files.loading import load
from taskmoe_plugin.files.writing import save
from taskmoe_plugin.models.config import settle_task_gates
from taskmoe_plugin.subnet.checkpoint import Checkpoint
from taskmoe_plugin.subnet.extract import Options, extract

KEPT = 4  # the random text uses one word in so many


@dataclass(frozen=True)
class Source:
    """What is translated, and the full model that does.

    Attributes:
        data: the binarised data.
        checkpoint: the full model.
        pair: the language pair.
        sentences: lists of tokens.
    """

    data: Path
    checkpoint: Path
    pair: str
    sentences: list[list[str]]


def given_source(args: Namespace, sentences: int) -> Source:
    """The user's own model and test set, repeated until there are enough sentences.

    Raises:
        TaskMoEError: a flag or a file is missing, or a file is damaged.
    """
    if not (args.path and args.lang_pair):
        raise UsageError(
            "DATA_BIN needs --path CKPT and --lang-pair PAIR; without all three, random models are measured"
        )
    Checkpoint.open(Path(args.path), f"--path {args.path}")
    lang = args.lang_pair.split("-")[0]
    data, name = Path(args.data_bin), f"test.{args.lang_pair}.{lang}"
    dictionary = data / f"dict.{lang}.txt"
    for path in (data / f"{name}.bin", dictionary):
        if not path.exists():
            raise UsageError(f"{path}: no such file; give the DATA_BIN with the test set of --lang-pair")
    read_dictionary(dictionary)
    words, prefix = Dictionary.load(str(dictionary)), str(data / name)
    check_set(prefix)
    test = data_utils.load_indexed_dataset(prefix, words)
    rows = [test[index] for index in range(min(len(test), sentences))]
    check_pieces(prefix, max(int(row.max()) for row in rows), len(words))
    found = [words.string(row).split() for row in rows]
    return Source(data, Path(args.path), args.lang_pair, list(islice(cycle(found), sentences)))


def random_source(args: Namespace, directory: Path, sentences: int) -> Source:
    """A model with random weights, and random text that uses a quarter of the vocabulary."""
    langs = ["en", "de", *(f"x{index}" for index in range(2, args.tasks))]
    pairs = [pair for lang in langs[1:] for pair in (f"en-{lang}", f"{lang}-en")]
    words = Dictionary()
    for index in range(args.vocabulary - len(langs) - words.nspecial):
        words.add_symbol(f"w{index}")
    for lang in langs:
        words.save(str(directory / f"dict.{lang}.txt"))
    used = torch.randperm((len(words) - words.nspecial) // KEPT) + words.nspecial
    for lang in ("en", "de"):
        prefix = str(directory / f"train.en-de.{lang}")
        builder = indexed_dataset.make_builder(f"{prefix}.bin", impl="mmap", vocab_size=len(words))
        builder.add_item(used)
        builder.finalize(f"{prefix}.idx")
    fairseq_args = [
        str(directory), "--langs", ",".join(langs), "--lang-pairs", ",".join(pairs),
        *moe_args(args, "task", args.experts), "--share-all-embeddings", "--encoder-langtok", "tgt",
        "--optimizer", "adam", "--lr", "1e-4", "--max-tokens", "4096", "--cpu", "--no-save",
        "--save-dir", str(directory),  # where no checkpoint is, from which to go on
    ]  # fmt: skip
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), fairseq_args))
    task = tasks.setup_task(cfg.task)
    trainer = Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))
    checkpoint = directory / "full.pt"
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(str(checkpoint), {"train_iterator": {"version": 2, "epoch": 1, "iterations_in_epoch": 0}})
    chosen = used[torch.randint(len(used), (sentences, args.length))]
    return Source(directory, checkpoint, "en-de", [[words[word] for word in row] for row in chosen.tolist()])


def route_by_token(args: Namespace) -> None:
    """Make a model's arguments those of the same model routed by token in both stacks."""
    settle_task_gates(args)
    args.encoder_moe_routing = args.decoder_moe_routing = "token"
    if args.moe_combine == "weights":
        args.moe_combine, args.moe_top_k = "outputs", min(2, args.moe_expert_count)


def with_random_weights(
    checkpoint: Path, data: Path, path: Path, change: Callable[[Namespace], None] | None = None
) -> Path:
    """Write the checkpoint of a freshly initialised model of another one's arguments, in which ``change`` is made."""
    state = load(checkpoint)
    # Those of a subnet for stock fairseq are dictionaries.
    flags = {name: Namespace(**_flags(state["cfg"][name])) for name in ("model", "task")}
    if change is not None:
        change(flags["model"])
    flags["task"].data = str(data)
    state["cfg"].update(flags)
    state["model"] = tasks.setup_task(flags["task"]).build_model(flags["model"], from_checkpoint=True).state_dict()
    state.pop("last_optimizer_state", None)
    save(state, path)
    return path


def _flags(part: Any) -> dict[str, Any]:
    return part if isinstance(part, dict) else vars(part)


def quantized(checkpoint: Path, path: Path, bits: int) -> Path:
    """Write a checkpoint with experts in few bits, and all else in fp16."""
    run_conversion(checkpoint, path, False, quantize_experts(bits, None, torch.float16))
    return path


def subnet(source: Source, directory: Path, **options: Any) -> Path:
    """Extract the subnet of the pair; returns its directory.

    Args:
        source: the full model and its data.
        directory: a new directory.
        options: further options of the extraction.

    Raises:
        TaskMoEError: the model has no subnet of this pair.
    """
    extract(source.checkpoint, [[source.pair]], Options((source.data,), directory, **options))
    return directory / source.pair


def language_tokens(source: Source) -> dict[str, list[str]]:
    """The tokens that fairseq puts before the target, and that CTranslate2 must be given."""
    task = load(source.checkpoint)["cfg"]["task"]
    target = source.pair.split("-")[1]
    return {"target_prefix": [f"__{target}__"] if task.decoder_langtok else []}
