#!/usr/bin/env python3
"""Render what record_system.py has written, RESULTS/DATA/SYSTEM-SEED.json, as a page of tables.

Runs that are missing are left out and counted, so that the page is true at any time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import comparison_tables as tables
from comparison_tables import Systems

HEAD = """# Comparison of systems

Rendered by `examples/wmt_multilingual/render_comparison.py` from the files in `docs/comparison/`, one for each
training, which `examples/wmt_multilingual/comparison.sh SETTINGS` leaves. All systems of a data set see the same text,
vocabulary, number of updates, batches and learning rate; what sets them apart is in
`examples/wmt_multilingual/settings/systems.sh`. In all but dense_large a token passes as many feed-forward weights.

Figures are means over the seeds, with the smallest and largest in brackets where there are several. BLEU and chrF are
sacrebleu's on whole test sets, averaged over directions. *Better* and *worse* count the directions, of all seeds,
in which sacrebleu's paired bootstrap (1,000 samples) finds a difference from the baseline of the same seed with
p < 0.05. Words per second are those of training text in the processor's time for a whole training, its start and its
validations too. Experts in use are the share of experts that get a token in one update, at the end of the training.
"""


def load(directory: Path) -> Systems:
    """The runs of a data set by system, in the order of their average BLEU, best first."""
    runs: Systems = {}
    for path in sorted(directory.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        runs.setdefault(run["system"], []).append(run)
    return dict(sorted(runs.items(), key=lambda item: -tables.average(item[1])))


def section(name: str, systems: Systems) -> str:
    """What there is to say of one data set."""
    run = min((run for runs in systems.values() for run in runs), key=lambda run: "baseline" in run)
    count, directions = sum(map(len, systems.values())), run["directions"]
    parts = [
        f"\n## {name}\n\n{count} training{'s' * (count > 1)} of {run['training']['updates']:,} updates; "
        f"{len(directions)} direction{'s' * (len(directions) > 1)}, "
        f"{sum(each['sentences'] for each in directions.values()):,} test sentences. The baseline is {run['system']}, "
        f"trained with `{' '.join(run['flags'])}`\n\n",
        tables.overview(systems),
        tables.shares_of_gain(systems),
        "\n",
        tables.costs(systems),
        tables.task_gates(systems),
    ]
    for key, where in (("directions", "by direction"), ("zero_shot", "in directions that were not trained")):
        for metric, label in (("bleu", "BLEU"), ("chrf", "chrF")):
            table = tables.by_direction(systems, key, metric)
            parts += [f"\n{label} {where}:\n\n{table}"] if table else []
    return "".join(parts)


def render(results: Path) -> str:
    """The whole page."""
    found = {path.name: load(path) for path in sorted(results.iterdir()) if path.is_dir()}
    sections = [section(name, systems) for name, systems in found.items() if systems]
    return "".join([HEAD, *sections, tables.against_anchor(found)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    docs = Path(__file__).resolve().parents[2] / "docs"
    parser.add_argument("--results-dir", type=Path, default=docs / "comparison")
    parser.add_argument("--output", type=Path, default=docs / "comparison.md")
    args = parser.parse_args()
    partial = args.output.with_name(args.output.name + ".partial")
    partial.write_text(render(args.results_dir), encoding="utf-8")
    partial.replace(args.output)


if __name__ == "__main__":
    main()
