#!/usr/bin/env python3
"""Score translations of whole test sets with sacrebleu: BLEU and chrF of every direction, and their averages.

Reads TRANSLATIONS_DIR/{src}-{tgt}.txt and the test text of TEXT_DIR; prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

import text
from text import Direction, TextError


def read_translations(path: Path) -> list[str]:
    """The lines of a file of translations, some of which may be empty. Raises TextError where there is none."""
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        raise TextError(f"{path}: no such file; translate this direction first") from None


def score_direction(hypotheses: Path, reference: Path, lang: str, tokenize: str | None = None) -> dict[str, Any]:
    """Score a file of translations into ``lang`` against its reference.

    BLEU's tokenizer is ``tokenize``, or sacrebleu's default, but that of ``lang`` where sacrebleu has one (zh).
    Raises TextError where the two differ in their number of lines.
    """
    references, translations = list(text.read_lines(reference)), read_translations(hypotheses)
    if len(translations) != len(references):
        raise TextError(f"{hypotheses}: {len(translations)} translations, but {len(references)} lines in {reference}")
    has_own = BLEU(trg_lang=lang).tokenizer.signature() != BLEU.TOKENIZER_DEFAULT
    bleu, chrf = BLEU(trg_lang=lang, tokenize=None if has_own else tokenize), CHRF()
    return {
        "sentences": len(references),
        "bleu": bleu.corpus_score(translations, [references]).score,
        "chrf": chrf.corpus_score(translations, [references]).score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }


def mean(scores: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The plain mean over directions."""
    rows = list(scores)
    return {key: sum(row[key] for row in rows) / len(rows) for key in ("bleu", "chrf")}


def score(
    translations_dir: Path,
    text_dir: Path,
    directions: list[Direction],
    tokenize: str | None = None,
    groups: dict[str, list[str]] | None = None,
) -> dict[str, Any]:
    """Score every direction; ``average`` is the mean over all, ``groups`` over those that match one of its patterns."""
    scores = {}
    for direction in directions:
        name = text.find_name(text_dir, "test", direction)
        if name is None:
            raise TextError(f"{text_dir}: no test text for {direction}")
        reference = text_dir / f"test.{name}.{direction.target}"
        hypotheses = translations_dir / f"{direction}.txt"
        scores[str(direction)] = score_direction(hypotheses, reference, direction.target, tokenize)
    averages = {}
    for group, patterns in (groups or {}).items():
        members = [row for direction, row in scores.items() if any(fnmatch(direction, each) for each in patterns)]
        if members:
            averages[group] = mean(members)
    return {"directions": scores, "groups": averages, "average": mean(scores.values())}


def table(scores: dict[str, Any]) -> str:
    """Lay the scores out for the terminal."""
    rows = [f"{'direction':<12}{'sentences':>10}{'BLEU':>8}{'chrF':>8}"]
    for direction, each in scores["directions"].items():
        rows.append(f"{direction:<12}{each['sentences']:>10}{each['bleu']:>8.1f}{each['chrf']:>8.1f}")
    for name, each in (scores["groups"] | {"average": scores["average"]}).items():
        rows.append(f"{name:<22}{each['bleu']:>8.1f}{each['chrf']:>8.1f}")
    return "\n".join(rows)


def parse_group(argument: str) -> tuple[str, list[str]]:
    """Read NAME=PATTERN,PATTERN. Raises ArgumentTypeError for anything else."""
    name, equals, patterns = argument.partition("=")
    if not (name and equals and patterns):
        raise argparse.ArgumentTypeError(f"'{argument}': write it as in into-english=*-en")
    return name, patterns.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--translations-dir", type=Path, required=True)
    parser.add_argument("--text-dir", type=Path, required=True)
    parser.add_argument("--lang-pairs", required=True, help="directions to score, such as en-de,de-en")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--tokenize",
        choices=sorted(BLEU.TOKENIZERS),
        metavar="NAME",
        help="sacrebleu's tokenizer, such as intl, where the target language has none of its own (default: 13a)",
    )
    parser.add_argument(
        "--group",
        action="append",
        type=parse_group,
        default=[],
        metavar="NAME=PATTERN,...",
        help="also report the mean over the directions that match, as in into-english=*-en; repeat it for more",
    )
    args = parser.parse_args()
    directions = text.parse_directions(args.lang_pairs)
    scores = score(args.translations_dir, args.text_dir, directions, args.tokenize, dict(args.group))
    partial = args.output.with_name(args.output.name + ".partial")
    partial.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    partial.rename(args.output)
    print(table(scores))


if __name__ == "__main__":
    text.run(main)
