#!/usr/bin/env python3
"""Score translations of whole test sets: BLEU and chrF of every direction, with --comet COMET, and their averages.

Reads TRANSLATIONS_DIR/{src}-{tgt}.txt and the test text of TEXT_DIR; prints a table, writes JSON. The ratio is that of
the lengths of translation and reference, in words of BLEU.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import tempfile
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

import text
from taskmoe_plugin.scoring import make_bleu
from text import Direction, TextError

HEADS = {"bleu": "BLEU", "chrf": "chrF", "comet": "COMET", "length_ratio": "ratio"}
FORMS = {"bleu": ".1f", "chrf": ".1f", "comet": ".4f", "length_ratio": ".2f"}


def read_translations(path: Path) -> list[str]:
    """The lines of a file of translations, some of which may be empty. Raises TextError where there is none."""
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        raise TextError(f"{path}: no such file; translate this direction first") from None


def score_direction(hypotheses: Path, reference: Path, lang: str, tokenize: str | None = None) -> dict[str, Any]:
    """Score a file of translations into ``lang`` against its reference.

    BLEU's tokenizer is that of ``taskmoe_plugin.scoring``: ``tokenize``, or the one that the language needs.
    Raises TextError where the two differ in their number of lines, and where the tokenizer is not installed.
    """
    references, translations = list(text.read_lines(reference)), read_translations(hypotheses)
    if len(translations) != len(references):
        raise TextError(f"{hypotheses}: {len(translations)} translations, but {len(references)} lines in {reference}")
    bleu, chrf = bleu_of(lang, tokenize), CHRF()
    score = bleu.corpus_score(translations, [references])
    return {
        "sentences": len(references),
        "bleu": score.score,
        "chrf": chrf.corpus_score(translations, [references]).score,
        "length_ratio": score.ratio,
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }


def bleu_of(lang: str, tokenize: str | None) -> BLEU:
    try:
        return make_bleu(lang, tokenize, "--tokenize")
    except ValueError as error:
        raise TextError(str(error)) from error


def comet(command: str, source: Path, hypotheses: Path, reference: Path) -> float:
    """The score that COMET's program ``comet-score``, called with ``command``, gives a file of translations.

    Raises TextError where it fails.
    """
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory, "scores.json")
        files = ("-s", source, "-t", hypotheses, "-r", reference, "--to_json", output)
        try:
            subprocess.run([*shlex.split(command), "--only_system", "--quiet", *map(str, files)], check=True)
            (segments,) = json.loads(output.read_text(encoding="utf-8")).values()
        except (OSError, subprocess.CalledProcessError) as error:
            raise TextError(
                f"--comet {command}: failed ({error}); give the comet-score of COMET's environment"
            ) from None
    return sum(float(each["COMET"]) for each in segments) / len(segments)


def mean(scores: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The plain mean over directions."""
    rows = list(scores)
    return {key: sum(row[key] for row in rows) / len(rows) for key in HEADS if key in rows[0]}


def score(
    translations_dir: Path,
    text_dir: Path,
    directions: list[Direction],
    tokenize: str | None = None,
    groups: dict[str, list[str]] | None = None,
    comet_command: str | None = None,
) -> dict[str, Any]:
    """Score every direction; ``average`` is the mean over all, ``groups`` over those that match one of its patterns."""
    scores = {}
    for direction in directions:
        name = text.find_name(text_dir, "test", direction)
        if name is None:
            raise TextError(f"{text_dir}: no test text for {direction}")
        reference = text_dir / f"test.{name}.{direction.target}"
        hypotheses = translations_dir / f"{direction}.txt"
        row = score_direction(hypotheses, reference, direction.target, tokenize)
        if comet_command:
            row["comet"] = comet(comet_command, text_dir / f"test.{name}.{direction.source}", hypotheses, reference)
        scores[str(direction)] = row
    averages = {}
    for group, patterns in (groups or {}).items():
        members = [row for direction, row in scores.items() if any(fnmatch(direction, each) for each in patterns)]
        if members:
            averages[group] = mean(members)
    return {"directions": scores, "groups": averages, "average": mean(scores.values())}


def table(scores: dict[str, Any]) -> str:
    """Lay the scores out for the terminal."""
    columns = [key for key in HEADS if key in scores["average"]]
    rows = [f"{'direction':<12}{'sentences':>10}" + "".join(f"{HEADS[key]:>8}" for key in columns)]
    for direction, each in scores["directions"].items():
        rows.append(f"{direction:<12}{each['sentences']:>10}{_cells(each, columns)}")
    for name, each in (scores["groups"] | {"average": scores["average"]}).items():
        rows.append(f"{name:<22}{_cells(each, columns)}")
    return "\n".join(rows)


def _cells(row: dict[str, Any], columns: list[str]) -> str:
    return "".join(f"{row[key]:>8{FORMS[key]}}" for key in columns)


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
        help="sacrebleu's tokenizer, such as flores200 for spBLEU; 13a (the default) and intl give way where the "
        "target language needs its own",
    )
    parser.add_argument(
        "--comet", metavar="COMMAND", help='also score with COMET, as in "/envs/comet/bin/comet-score --gpus 0"'
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
    scores = score(args.translations_dir, args.text_dir, directions, args.tokenize, dict(args.group), args.comet)
    partial = args.output.with_name(args.output.name + ".partial")
    partial.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    partial.rename(args.output)
    print(table(scores))


if __name__ == "__main__":
    text.run(main)
