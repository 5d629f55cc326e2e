"""Tasks set up from a command line, and the batches they make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fairseq import options, tasks

from tests.helpers.commands import USER_DIR
from tests.helpers.corpus import LANGS, PAIRS, Corpus

LANGTOKS = ("--encoder-langtok", "tgt", "--decoder-langtok")


def task_flags(corpus: Corpus, *flags: Any) -> list[str]:
    """What every command is called with: the data, the task and its languages, then ``flags``."""
    common = [
        corpus.bin, "--user-dir", USER_DIR, "--task", "taskmoe_translation", "--langs", ",".join(LANGS),
        "--lang-pairs", ",".join(PAIRS), "--cpu", "--num-workers", 0, *flags,
    ]  # fmt: skip
    return [str(each) for each in common]


def make_args(corpus: Corpus, *flags: Any) -> Any:
    """The arguments that fairseq-train makes of these flags, with language tokens as in ``LANGTOKS``."""
    parser = options.get_training_parser()
    limits = ("--max-source-positions", 1024, "--max-target-positions", 1024)
    argv = task_flags(corpus, "--arch", "taskmoe_transformer_tiny", *limits, *LANGTOKS, *flags)
    return options.parse_args_and_arch(parser, input_args=argv)


def make_task(corpus: Corpus, *flags: Any) -> Any:
    """The task of these flags."""
    return tasks.setup_task(make_args(corpus, *flags))


def batches(task: Any, split: str, shuffle: bool = False, **iteration: Any) -> Iterator[dict[str, Any]]:
    """The batches of a split, made as fairseq's commands make them, by default of at most 8 sentences."""
    if split not in task.datasets:
        task.load_dataset(split)
    settings = {"max_sentences": 8, "required_batch_size_multiple": 1, **iteration}
    return task.get_batch_iterator(task.datasets[split], **settings).next_epoch_itr(shuffle=shuffle)


def words(task: Any, tokens: Any) -> list[str]:
    """The symbols of a row of a batch, without padding."""
    symbols = task.source_dictionary
    return [symbols[token] for token in tokens.tolist() if token != symbols.pad()]


def language(word: str) -> str:
    """The language of a word of the made-up corpus."""
    return "fr" if word.startswith("le") else "de" if word.endswith("en") else "en"
