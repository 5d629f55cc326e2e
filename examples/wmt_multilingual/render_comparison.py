#!/usr/bin/env python3
"""Render what record_system.py has written, RESULTS/DATA/SYSTEM-SEED.json, as a page of tables.

Runs that are missing are left out and counted, so that the page is true at any time. RESULTS/earlier holds data sets
whose systems were trained with other settings. RESULTS/DATA/note.md, if there is any, is the first that is said of it.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import comparison_tables as tables
from comparison_tables import Run, Systems
from pages import write_page

HEAD = """# Comparison of systems

Rendered by `examples/wmt_multilingual/render_comparison.py` from the files in `docs/comparison/`, one for each
training, which `examples/wmt_multilingual/comparison.sh SETTINGS` leaves. All systems of a data set see the same text,
vocabulary, number of updates and batches; what sets them apart is in
`examples/wmt_multilingual/settings/systems.sh`. In all but dense_wide a token passes as many feed-forward weights.

Figures are means over the seeds, with the smallest and largest in brackets where there are several. BLEU and chrF are
sacrebleu's on whole test sets, averaged over directions; length is the translations' in parts of the references'.
*Better* and *worse* count the directions, of all seeds, in which sacrebleu's paired bootstrap (1,000 samples) finds a
difference from another system of the same seed with p < 0.05. Losses are in bits a token. What is stored for one
direction is a subnet, where there are any, and else the whole model, at four bytes a parameter. Words per second are
those of training text in the processor's time for a whole training, its start and its validations too. Experts in use
are the share of experts that get a token in one update, at the end of the training.
"""
# Key, name and form of what is given by direction.
SCORES = (("bleu", "BLEU", ".1f"), ("chrf", "chrF", ".1f"), ("length_ratio", "Length", ".2f"))
EARLIER = """
# Earlier

Trained in November 2026 with other settings, which the version that each file in `docs/comparison/earlier/` names has:
4+4 layers of width 128 of which every second one had experts, a learning rate of 0.004 for all systems, and outputs of
narrow experts that were not scaled. dense_large is what is dense_wide above.
"""


def load(directory: Path) -> Systems:
    """The runs of a data set by system, best first."""
    runs: Systems = {}
    for path in sorted(directory.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        runs.setdefault(run["system"], []).append(run)
    return dict(sorted(runs.items(), key=lambda item: tables.rank(item[1])))


def section(directory: Path, systems: Systems) -> str:
    """What there is to say of one data set."""
    note = directory / "note.md"
    run = next(iter(systems.get(tables.BASELINES[0], next(iter(systems.values())))))
    count, directions = sum(map(len, systems.values())), run.get("directions", {})
    tested = (
        f"; {len(directions)} directions, {sum(each['sentences'] for each in directions.values()):,} test sentences"
    )
    parts = [
        f"\n## {directory.name}\n\n",
        note.read_text(encoding="utf-8") + "\n" if note.exists() else "",
        f"{count} training{'s' * (count > 1)} of {run['training']['updates']:,} updates{tokens(run)}"
        f"{tested if directions else ', too short to translate with'}. {run['system']} was trained with "
        f"`{' '.join(run['flags'])}`\n\n",
        tables.overview(systems),
        tables.shares_of_gain(systems),
        tables.costs(systems),
        tables.learning_rates(systems),
        tables.curves(systems),
        tables.task_gates(systems),
    ]
    for key, where in (("directions", "by direction"), ("zero_shot", "in directions that were not trained")):
        for metric, label, form in SCORES:
            table = tables.by_direction(systems, partial(tables.scores, key=key, metric=metric), form)
            parts += [f"\n{label} {where}:\n\n{table}"] if table else []
    losses = tables.by_direction(systems, lambda run: run["training"].get("valid_nll_loss_by_direction", {}), ".2f")
    parts += [f"\nValidation loss (bits) by direction:\n\n{losses}"] if losses else []
    return "".join(parts)


def tokens(run: Run) -> str:
    """How much text a training saw, where that was recorded."""
    seen = run["training"].get("tokens")
    return f", {seen / 1e6:.1f} million target tokens" if seen else ""


def sections(results: Path) -> list[str]:
    """A section for each data set with runs."""
    found = {path: load(path) for path in sorted(results.iterdir()) if path.is_dir()} if results.is_dir() else {}
    return [section(path, systems) for path, systems in found.items() if systems]


def render(results: Path) -> str:
    """The whole page."""
    earlier = sections(results / "earlier")
    return "".join([HEAD, *sections(results), *([EARLIER] if earlier else []), *earlier])


def main() -> None:
    write_page(__doc__, "comparison", render)


if __name__ == "__main__":
    main()
