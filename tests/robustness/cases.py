"""The table: what reads which file, how that is spoiled, and what must be said.

One more entry point is one more line of ``ENTRY_POINTS``, one more way to spoil a file one more in ``DAMAGES``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from taskmoe_plugin import __file__ as plugin
from tests.helpers.corpus import LANGS, PAIRS
from tests.helpers.tasks import LANGTOKS
from tests.helpers.training import CRITERION, MODEL, OPTIMIZER
from tests.robustness import damages
from tests.robustness.damages import Damage

USER_DIR = plugin.rpartition("/")[0]
# Paths in a case's directory.
DENSE_FILE = "dense/checkpoint_last.pt"
TOKEN_FILE, PIECES, SUBNET = "token/checkpoint_last.pt", "pieces.model", "subnet/en-de"
MODEL_FILE, SPREAD_FILE, EXPERTS = "model/checkpoint_last.pt", "spread/checkpoint_last.pt", "spread/experts/*-0of2.pt"
TASK = (
    "bin", "--user-dir", USER_DIR, "--task", "taskmoe_translation", "--langs", ",".join(LANGS), "--lang-pairs",
    ",".join(PAIRS), "--cpu", "--num-workers", 0, *LANGTOKS,
)  # fmt: skip
EXTRACT = ("fairseq-extract-subnet", "bin", "--lang-pairs", "en-de", "--output-dir", "out")
TRAIN = (
    "fairseq-train", *TASK, *MODEL, *CRITERION, *OPTIMIZER, "--max-tokens", 300, "--max-update", 4, "--save-dir",
    "save",
)  # fmt: skip
BENCH = (
    "taskmoe", "bench", "decode", "bin", "--systems", "full", "--batch-sizes", 1, "--beam", 1, "--length", 2,
    "--repetitions", 1, "--threads", 1,
)  # fmt: skip
DECODE = (*TASK, "--source-lang", "en", "--target-lang", "de", "--beam", 2, "--max-len-b", 5)


@dataclass(frozen=True)
class EntryPoint:
    """A command and the files that it reads, by kind.

    Attributes:
        command: its arguments, with paths relative to the case's directory.
        reads: for each kind of file in ``DAMAGES`` one that it reads.
        long: whether its success takes too long to be tried here.
    """

    command: tuple[Any, ...]
    reads: dict[str, str]
    long: bool = False


def _half(name: str, suffix: str) -> str:
    return f"bin/{name}.en-de.en.{suffix}"


def _data(name: str) -> dict[str, str]:
    return {"index": _half(name, "idx"), "data": _half(name, "bin")}


SPREAD = {"experts": EXPERTS, "manifest": SPREAD_FILE}
DICTIONARY = {"dictionary": "bin/dict.en.txt"}
ENTRY_POINTS = {
    "extract": EntryPoint((*EXTRACT, "--path", MODEL_FILE), {"checkpoint": MODEL_FILE, **DICTIONARY}),
    "extract ctranslate2": EntryPoint(
        (*EXTRACT, "--path", MODEL_FILE, "--format", "ctranslate2"), {"checkpoint": MODEL_FILE}
    ),
    "extract spread": EntryPoint((*EXTRACT, "--path", SPREAD_FILE), SPREAD),
    "extract --verify": EntryPoint((*EXTRACT, "--path", MODEL_FILE, "--verify"), _data("test")),
    "extract --trim-vocabulary": EntryPoint((*EXTRACT, "--path", MODEL_FILE, "--trim-vocabulary"), _data("train")),
    "extract --sentencepiece-model": EntryPoint(
        ("taskmoe", "extract", *EXTRACT[1:], "--path", MODEL_FILE, "--sentencepiece-model", PIECES), {"pieces": PIECES}
    ),
    "translate": EntryPoint(
        ("taskmoe", "translate", SUBNET, "text.txt", "--beam-size", 1, "--threads", 1),
        {
            "description": f"{SUBNET}/subnet.json",
            "ctranslate2": f"{SUBNET}/model.bin",
            "pieces": f"{SUBNET}/sentencepiece.bpe.model",
            "text": "text.txt",
        },
    ),
    "convert join": EntryPoint(
        ("taskmoe", "convert", "join", MODEL_FILE, "model/other.pt", "--output", "out.pt"),
        {"checkpoint": "model/other.pt"},
    ),
    "convert prune": EntryPoint(
        ("taskmoe", "convert", "prune", TOKEN_FILE, "--output", "out.pt", "--experts", 2, "--data", "bin"),
        {"checkpoint": TOKEN_FILE, **_data("valid"), **DICTIONARY},
    ),
    "convert quantize": EntryPoint(
        ("taskmoe", "convert", "quantize", MODEL_FILE, "--output", "out.pt", "--bits", 4), {"checkpoint": MODEL_FILE}
    ),
    "convert upcycle": EntryPoint(
        ("taskmoe", "convert", "upcycle", DENSE_FILE, "--output", "out.pt"), {"checkpoint": DENSE_FILE}
    ),
    "convert moefy": EntryPoint(
        ("taskmoe", "convert", "moefy", DENSE_FILE, "--output", "out.pt", "--experts", 2), {"checkpoint": DENSE_FILE}
    ),
    "report": EntryPoint(
        ("taskmoe", "report", MODEL_FILE, "--output-dir", "out", "--no-plots"), {"checkpoint": MODEL_FILE}
    ),
    "report --data": EntryPoint(
        ("taskmoe", "report", TOKEN_FILE, "--output-dir", "out", "--no-plots", "--data", "bin"),
        {**_data("valid"), **DICTIONARY},
    ),
    "consolidate": EntryPoint(
        ("taskmoe", "consolidate", SPREAD_FILE, "--output", "out.pt"), {"copied": SPREAD_FILE, **SPREAD}
    ),
    "bench decode": EntryPoint(
        (*BENCH, "--path", MODEL_FILE, "--lang-pair", "en-de", "--output", "out"),
        {"opened": MODEL_FILE, **_data("test"), **DICTIONARY},
        long=True,
    ),
    "bench show": EntryPoint(("taskmoe", "bench", "show", "bench.json"), {"json": "bench.json"}),
    "train": EntryPoint(TRAIN, {**_data("train"), **DICTIONARY}),
    "train, validating": EntryPoint(TRAIN, _data("valid")),
    "train --restore-file": EntryPoint((*TRAIN, "--restore-file", MODEL_FILE), {"checkpoint": MODEL_FILE}),
    "train --finetune-from-model": EntryPoint(
        (*TRAIN, "--finetune-from-model", MODEL_FILE), {"checkpoint": MODEL_FILE}
    ),
    "train --distill-from": EntryPoint(
        (*TRAIN, "--criterion", "taskmoe_word_distillation", "--distill-from", MODEL_FILE), {"checkpoint": MODEL_FILE}
    ),
    "train --restore-file, spread": EntryPoint((*TRAIN, "--restore-file", SPREAD_FILE), SPREAD),
    "train --moe-task-groups": EntryPoint(
        (*TRAIN, "--decoder-moe-routing", "group", "--moe-task-groups", "groups.tsv"), {"groups": "groups.tsv"}
    ),
    "generate": EntryPoint(
        ("fairseq-generate", *DECODE, "--path", MODEL_FILE), {"checkpoint": MODEL_FILE, **_data("test"), **DICTIONARY}
    ),
    "generate spread": EntryPoint(("fairseq-generate", *DECODE, "--path", SPREAD_FILE), SPREAD),
    "interactive": EntryPoint(("fairseq-interactive", *DECODE, "--path", MODEL_FILE), {"checkpoint": MODEL_FILE}),
    "validate": EntryPoint(
        ("fairseq-validate", *TASK, "--path", MODEL_FILE, "--max-tokens", 300, "--valid-subset", "valid"),
        {"checkpoint": MODEL_FILE, **_data("valid")},
    ),
}


@dataclass(frozen=True)
class Wanted:
    """What must come of a damage.

    Attributes:
        damage: the damage.
        words: one of these is in the line.
        harmless: the command may also succeed: not every bit is looked at.
    """

    damage: Damage
    words: tuple[str, ...] = ()
    harmless: bool = False


ANY_FILE = (
    Wanted(damages.removed, ("no such file", "no training data", "no test", "no valid", "no train", "cannot be read")),
    Wanted(damages.directory, ("Is a directory", "is a directory", "no such file", "cannot be read")),
    Wanted(damages.unreadable, ("Input/output error",)),
)
TORCH = (
    *ANY_FILE,
    Wanted(damages.truncated, ("truncated",)),
    Wanted(damages.lacks_its_last_byte, ("truncated",)),
    Wanted(damages.empty, ("truncated",)),
    Wanted(damages.foreign, ("safe loading refuses",)),
)
CHECKPOINT = (
    *TORCH,
    Wanted(damages.noise, ("no PyTorch checkpoint",)),
    Wanted(damages.text, ("no PyTorch checkpoint",)),
    Wanted(damages.other_contents, ("fairseq", "training wrote")),
    Wanted(damages.flipped, harmless=True),
    Wanted(damages.flipped_in_pickle, harmless=True),
    Wanted(damages.flipped_in_directory, harmless=True),
)
DAMAGES: dict[str, tuple[Wanted, ...]] = {
    "checkpoint": (
        *CHECKPOINT,
        Wanted(damages.lacks_a_tensor, ("not fit", "tensor", "shape")),
        Wanted(damages.other_shape, ("not fit", "tensor", "shape")),
    ),
    "copied": CHECKPOINT,  # whatever tensors it has
    "opened": TORCH,  # all that is wrong with a checkpoint before its weights are looked at
    "experts": (
        *TORCH,
        Wanted(damages.other_contents, ("is of another run or save",)),
        Wanted(damages.lacks_a_part, ("does not have",)),
    ),
    "manifest": (
        Wanted(damages.thousand_million_experts, ("experts", "does not have")),
        Wanted(damages.wrong_manifest, ("experts' files is damaged",)),
    ),
    "dictionary": (
        *ANY_FILE,
        Wanted(damages.line_without_count, ("is not 'piece count'",)),
        Wanted(damages.line_again, ("remove the line",)),
        Wanted(damages.not_utf8, ("cannot be read",)),
        Wanted(damages.empty, ("is an empty dictionary",)),
    ),
    "index": (
        *ANY_FILE,
        Wanted(damages.truncated, ("truncated",)),
        Wanted(damages.lacks_its_last_byte, ("truncated",)),
        Wanted(damages.empty, ("truncated",)),
        Wanted(damages.noise, ("is no index",)),
        Wanted(damages.text, ("is no index",)),
        Wanted(damages.longer, ("damaged",)),
        Wanted(damages.flipped, ("damaged", "truncated", "is no index", "does not belong", "has no sentence")),
        Wanted(damages.other_set, ("truncated", "does not belong")),
        Wanted(damages.no_sentence, ("has no sentence",)),
    ),
    "data": (
        *ANY_FILE,
        Wanted(damages.truncated, ("truncated",)),
        Wanted(damages.lacks_its_last_byte, ("truncated",)),
        Wanted(damages.empty, ("truncated",)),
        Wanted(damages.longer, ("does not belong",)),
        Wanted(damages.other_set, ("truncated", "does not belong")),
        Wanted(damages.other_dictionary, ("another dictionary",)),
    ),
    "pieces": (
        *ANY_FILE,
        Wanted(damages.text, ("no SentencePiece model", "cannot be loaded")),
        Wanted(damages.empty, ("no SentencePiece model", "cannot be loaded")),
        Wanted(
            damages.truncated,
            ("no SentencePiece model", "damaged (", "cannot be loaded", "of the pieces"),
            harmless=True,
        ),
    ),
    "description": (
        Wanted(damages.removed, ("no subnet.json",)),
        *ANY_FILE[1:],
        Wanted(damages.truncated, ("extract",)),
        Wanted(damages.text, ("extract",)),
        Wanted(damages.other_values, ("extract",), harmless=True),
    ),
    # CTranslate2 gives its own reasons.
    "ctranslate2": tuple(
        Wanted(damage, ("cannot be loaded",))
        for damage in (*(each.damage for each in ANY_FILE), damages.truncated, damages.empty, damages.text)
    ),
    "text": (*ANY_FILE, Wanted(damages.not_utf8, ("no UTF-8",))),
    "groups": (*ANY_FILE, Wanted(damages.text, ("line 1 is not",)), Wanted(damages.not_utf8, ("cannot be read",))),
    "json": (
        *ANY_FILE,
        Wanted(damages.truncated, ("not a report",)),
        Wanted(damages.text, ("not a report",)),
        Wanted(damages.other_rows, ("not a report",)),
    ),
}


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    entry_point: str
    kind: str
    wanted: Wanted

    @property
    def name(self) -> str:
        return f"{self.entry_point}: {self.kind} {self.wanted.damage.__name__}"


def cases() -> Iterator[Case]:
    """Every entry point with every way to spoil every file that it reads."""
    for name, entry_point in ENTRY_POINTS.items():
        for kind in entry_point.reads:
            for wanted in DAMAGES[kind]:
                yield Case(name, kind, wanted)
