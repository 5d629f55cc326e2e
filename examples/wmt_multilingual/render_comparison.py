#!/usr/bin/env python3
"""Render what record_system.py has written, RESULTS/DATA/SYSTEM-SEED.json, as a page of tables.

Runs that are missing are left out and counted, so that the page is true at any time.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

SIGNIFICANT = 0.05
HEAD = """# Comparison of systems

Rendered by `examples/wmt_multilingual/render_comparison.py` from the files in `docs/comparison/`, one for each
training, which `examples/wmt_multilingual/comparison.sh SETTINGS` leaves. All systems of a data set see the same text,
vocabulary, number of updates, batches and learning rate; what sets them apart is in
`examples/wmt_multilingual/settings/systems.sh`. In all but dense_large a token passes as many feed-forward weights.

Figures are means over the seeds, with the smallest and largest in brackets where there are several. BLEU and chrF are
sacrebleu's on whole test sets, averaged over directions. *Better* and *worse* count the directions, of all seeds,
in which sacrebleu's paired bootstrap (1,000 samples) finds a difference from dense of the same seed with p < 0.05.
"""


def load(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """The runs of a data set by system, in the order of their average BLEU, best first."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(directory.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        runs.setdefault(run["system"], []).append(run)
    return dict(sorted(runs.items(), key=lambda item: -statistics.mean(mean(run["directions"]) for run in item[1])))


def mean(directions: dict[str, Any], metric: str = "bleu", chosen: Callable[[str], bool] = bool) -> float:
    """The mean score of the chosen directions."""
    return statistics.mean(float(each[metric]) for name, each in directions.items() if chosen(name))


def over_seeds(values: Iterable[float], form: str = ".2f") -> str:
    """A mean, with its range where there are several values; nothing where there is none."""
    values = list(values)
    if not values:
        return ""
    text = format(statistics.mean(values), form)
    return text if len(values) == 1 else f"{text} [{min(values):{form}}, {max(values):{form}}]"


def differences(runs: list[dict[str, Any]]) -> tuple[str, str]:
    """In how many directions a system is better, and in how many worse, than dense; of those that were tested."""
    tested = [each["against_dense"] for run in runs for each in run["directions"].values() if "against_dense" in each]
    if not tested:
        return "", ""
    found = [each["difference"] for each in tested if each["p"] < SIGNIFICANT]
    return f"{sum(each > 0 for each in found)} of {len(tested)}", f"{sum(each < 0 for each in found)} of {len(tested)}"


def largest_subnet_difference(runs: list[dict[str, Any]]) -> str:
    """The largest difference in BLEU between a full model and one of its subnets."""
    found = [
        abs(run["subnets"][name]["bleu"] - each["bleu"])
        for run in runs
        if "subnets" in run
        for name, each in run["directions"].items()
    ]
    return format(max(found), ".3f") if found else "no subnets"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def overview(systems: dict[str, list[dict[str, Any]]]) -> str:
    """A line for each system: scores, and what was tested against dense."""
    rows = []
    for system, runs in systems.items():
        rows.append(
            (
                system,
                str(len(runs)),
                over_seeds(mean(run["directions"]) for run in runs),
                over_seeds(mean(run["directions"], chosen=lambda name: name.startswith("en-")) for run in runs),
                over_seeds(mean(run["directions"], chosen=lambda name: name.endswith("-en")) for run in runs),
                over_seeds(mean(run["directions"], "chrf") for run in runs),
                *differences(runs),
                over_seeds(mean(run["zero_shot"]) for run in runs if "zero_shot" in run),
            )
        )
    head = (
        "system",
        "seeds",
        "BLEU",
        "from English",
        "into English",
        "chrF",
        "better",
        "worse",
        "BLEU, untrained pairs",
    )
    return markdown(head, rows)


def costs(systems: dict[str, list[dict[str, Any]]]) -> str:
    """A line for each system: parameters, speed, loss, experts in use, and what its subnets lose."""
    rows = []
    for system, runs in systems.items():
        size = runs[0]["parameters"]
        gates = [run["training"]["gates"] for run in runs]
        used = [[each[stack]["experts_in_use"] for each in gates] for stack in ("encoder", "decoder")]
        rows.append(
            (
                system,
                f"{size['total'] / 1e6:.2f}",
                f"{size['active'] / 1e6:.2f}",
                over_seeds((each for run in runs if (each := run["training"]["words_per_processor_second"])), ".0f"),
                over_seeds((run["training"]["valid_nll_loss"] for run in runs), ".3f"),
                *(over_seeds(each, ".2f") if any(each) else "" for each in used),
                largest_subnet_difference(runs),
            )
        )
    head = (
        "system", "parameters (M)", "a token uses (M)", "training, words per second of one core",
        "validation loss (bits)", "encoder experts in use", "decoder experts in use",
        "BLEU of subnets, largest difference",
    )  # fmt: skip
    return markdown(head, rows)


def by_direction(systems: dict[str, list[dict[str, Any]]], key: str) -> str:
    """BLEU of every direction and system."""
    runs_of = {system: [run[key] for run in runs if key in run] for system, runs in systems.items()}
    runs_of = {system: runs for system, runs in runs_of.items() if runs}
    if not runs_of:
        return ""
    directions = list(next(iter(runs_of.values()))[0])
    rows = (
        (system, *(f"{statistics.mean(run[direction]['bleu'] for run in runs):.1f}" for direction in directions))
        for system, runs in runs_of.items()
    )
    return markdown(("system", *directions), rows)


def render(results: Path) -> str:
    """The whole page."""
    parts = [HEAD]
    for directory in sorted(path for path in results.iterdir() if path.is_dir()):
        systems = load(directory)
        if not systems:
            continue
        run = next(iter(systems.values()))[0]
        parts += [
            f"\n## {directory.name}\n\n{sum(map(len, systems.values()))} trainings of {run['training']['updates']:,} "
            f"updates; {len(run['directions'])} directions, "
            f"{sum(each['sentences'] for each in run['directions'].values()):,} test sentences. Flags of dense: "
            f"`{' '.join((systems.get('dense') or [run])[0]['flags'])}`\n\n",
            overview(systems),
            "\n",
            costs(systems),
            "\nBLEU by direction:\n\n",
            by_direction(systems, "directions"),
        ]
        zero_shot = by_direction(systems, "zero_shot")
        if zero_shot:
            parts += ["\nBLEU in directions that were not trained:\n\n", zero_shot]
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    docs = Path(__file__).resolve().parents[2] / "docs"
    parser.add_argument("--results-dir", type=Path, default=docs / "comparison")
    parser.add_argument("--output", type=Path, default=docs / "comparison.md")
    args = parser.parse_args()
    args.output.write_text(render(args.results_dir), encoding="utf-8")


if __name__ == "__main__":
    main()
