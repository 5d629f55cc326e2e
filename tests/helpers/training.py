"""fairseq's commands on the made-up corpus, with models small enough to train in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.commands import Output, run
from tests.helpers.corpus import Corpus
from tests.helpers.models import GROUPS
from tests.helpers.tasks import LANGTOKS, task_flags

SIZES = tuple(
    argument
    for stack in ("encoder", "decoder")
    for name, value in (("layers", 2), ("embed-dim", 16), ("ffn-embed-dim", 24), ("attention-heads", 2))
    for argument in (f"--{stack}-{name}", value)
)
MODEL = ("--arch", "taskmoe_transformer", *SIZES, "--share-all-embeddings", "--moe-expert-count", 4)
# What learns the corpus in about a hundred updates.
WIDER = (
    "--encoder-embed-dim", 32, "--decoder-embed-dim", 32, "--encoder-normalize-before", "--decoder-normalize-before",
    "--max-tokens", 100, "--dropout", 0,
)  # fmt: skip
CRITERION = ("--criterion", "taskmoe_label_smoothed_cross_entropy", "--label-smoothing", 0.1)
OPTIMIZER = ("--optimizer", "adam", "--lr", 0.01, "--dropout", 0.1)
LOGGING = ("--log-format", "json", "--log-interval", 1)


def train_flags(corpus: Corpus, save_dir: Path, *flags: Any) -> list[str]:
    """The arguments of a short training; later ones override earlier ones."""
    common = (*LANGTOKS, *MODEL, *CRITERION, *OPTIMIZER, *LOGGING)
    return task_flags(corpus, *common, "--max-tokens", 300, "--max-update", 4, "--save-dir", save_dir, *flags)


def train(corpus: Corpus, save_dir: Path, *flags: Any) -> Output:
    """Train; by default for 4 updates of about 25 sentences."""
    return run("train", *train_flags(corpus, save_dir, *flags))


def train_numbers(numbers: Corpus, save_dir: Path, *flags: Any) -> Path:
    """Train until different sentences of ``write_numbers`` are translated differently; returns the checkpoint."""
    sizes = [f"--{stack}-{size}" for stack in ("encoder", "decoder") for size in ("embed-dim=32", "ffn-embed-dim=64")]
    train(
        numbers, save_dir, *sizes, "--langs", "en,de,fr", "--lang-pairs", "en-de,de-en,en-fr,fr-en",
        "--max-update", 200, "--max-tokens", 600, "--lr", 0.01, "--lr-scheduler", "inverse_sqrt",
        "--warmup-updates", 30, "--dropout", 0, "--no-epoch-checkpoints", "--disable-validation", *flags,
    )  # fmt: skip
    return save_dir / "checkpoint_last.pt"


def generate_flags(corpus: Corpus, path: Any, pair: str, *flags: Any) -> list[str]:
    """The arguments of a translation of a pair with the checkpoint at ``path``."""
    source, target = pair.split("-")
    fixed = ("--path", path, "--source-lang", source, "--target-lang", target, "--max-len-b", 12, "--beam", 2)
    return task_flags(corpus, *LANGTOKS, *fixed, *flags)


def generate(corpus: Corpus, path: Any, pair: str, *flags: Any) -> Output:
    """Translate the test set of a pair."""
    return run("generate", *generate_flags(corpus, path, pair, *flags))


def group_file(directory: Path) -> Path:
    """A file of groups for the made-up corpus."""
    path = directory / "groups.tsv"
    path.write_text("".join(f"{pair}\t{group}\n" for pair, group in GROUPS.items()))
    return path


def routing_flags(encoder: str, decoder: str, directory: Path) -> tuple[Any, ...]:
    """Flags of a combination of routings, with a group file where it needs one."""
    groups = ("--moe-task-groups", group_file(directory)) if "group" in (encoder, decoder) else ()
    return ("--encoder-moe-routing", encoder, "--decoder-moe-routing", decoder, *groups)
