"""How the models of stored formats are asked to translate."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.commands import USER_DIR, run
from tests.helpers.tasks import LANGTOKS

PAIR = "en-de"
INPUT = ["ba do fi", "gu ka lo mi", "nu", "pe ra so tu wi ba"]


def translate(data: Path, path: Path, *flags: object) -> list[list[object]]:
    """Score and text of the translation of each line of ``INPUT``."""
    source, target = PAIR.split("-")
    output = run(
        "interactive", data, "--user-dir", USER_DIR, "--task", "taskmoe_translation", "--langs", "en,de,fr",
        "--lang-pairs", PAIR, "--source-lang", source, "--target-lang", target, "--path", path, "--beam", 2,
        "--max-len-b", 12, "--cpu", *LANGTOKS, *flags, stdin="\n".join(INPUT) + "\n",
    )  # fmt: skip
    return [[score, text] for _, (score, text) in sorted(output.hypotheses.items())]
