#!/usr/bin/env python3
"""Score translations of whole test sets with sacrebleu: BLEU and chrF of every direction, and their average.

Reads TRANSLATIONS_DIR/{src}-{tgt}.txt and the test text of TEXT_DIR; prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

import text
from text import Direction, TextError


def score_direction(hypotheses: Path, reference: Path, lang: str) -> dict[str, Any]:
    """Score a file of translations into ``lang`` against its reference.

    Raises TextError where the two differ in their number of lines.
    """
    references = list(text.read_lines(reference))
    try:
        translations = hypotheses.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        raise TextError(f"{hypotheses}: no such file; translate this direction first") from None
    if len(translations) != len(references):
        raise TextError(f"{hypotheses}: {len(translations)} translations, but {len(references)} lines in {reference}")
    bleu, chrf = BLEU(trg_lang=lang), CHRF()
    return {
        "sentences": len(references),
        "bleu": bleu.corpus_score(translations, [references]).score,
        "chrf": chrf.corpus_score(translations, [references]).score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }


def score(translations_dir: Path, text_dir: Path, directions: list[Direction]) -> dict[str, Any]:
    """Score every direction; ``average`` is the plain mean over directions."""
    scores = {}
    for direction in directions:
        name = text.find_name(text_dir, "test", direction)
        if name is None:
            raise TextError(f"{text_dir}: no test text for {direction}")
        reference = text_dir / f"test.{name}.{direction.target}"
        scores[str(direction)] = score_direction(translations_dir / f"{direction}.txt", reference, direction.target)
    average = {key: sum(each[key] for each in scores.values()) / len(scores) for key in ("bleu", "chrf")}
    return {"directions": scores, "average": average}


def table(scores: dict[str, Any]) -> str:
    """Lay the scores out for the terminal."""
    rows = [f"{'direction':<12}{'sentences':>10}{'BLEU':>8}{'chrF':>8}"]
    for direction, each in scores["directions"].items():
        rows.append(f"{direction:<12}{each['sentences']:>10}{each['bleu']:>8.1f}{each['chrf']:>8.1f}")
    rows.append(f"{'average':<22}{scores['average']['bleu']:>8.1f}{scores['average']['chrf']:>8.1f}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--translations-dir", type=Path, required=True)
    parser.add_argument("--text-dir", type=Path, required=True)
    parser.add_argument("--lang-pairs", required=True, help="directions to score, such as en-de,de-en")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    scores = score(args.translations_dir, args.text_dir, text.parse_directions(args.lang_pairs))
    partial = args.output.with_name(args.output.name + ".partial")
    partial.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    partial.rename(args.output)
    print(table(scores))


if __name__ == "__main__":
    text.run(main)
