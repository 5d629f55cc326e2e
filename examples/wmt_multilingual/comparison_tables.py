"""The tables of the comparison's page, as Markdown, made of what record_system.py has written."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Run = dict[str, Any]
Systems = dict[str, list[Run]]

SIGNIFICANT = 0.05
# Students, and the system that taught them.
TEACHERS = {"distilled": "token_token", "distilled_words": "token_token"}
# The bilingual anchor, and the data sets whose systems are held against it.
ANCHOR, ANCHOR_DIRECTION, ANCHOR_PUBLISHED = "multi30k_lowercase", "en-de", 41.02
ANCHORED = ("multi30k", "multi30k_long")


def mean(directions: dict[str, Any], metric: str = "bleu") -> float:
    """The mean score of all directions."""
    return statistics.mean(float(each[metric]) for each in directions.values())


def average(runs: list[Run]) -> float:
    """The mean BLEU of a system's runs over all directions."""
    return statistics.mean(mean(run["directions"]) for run in runs)


def over_seeds(values: Iterable[float], form: str = ".2f") -> str:
    """A mean, with its range where there are several values; nothing where there is none."""
    values = list(values)
    if not values:
        return ""
    text = format(statistics.mean(values), form)
    return text if len(values) == 1 else f"{text} [{min(values):{form}}, {max(values):{form}}]"


def mean_of(chosen: Callable[[str], bool], runs: list[Run]) -> str:
    """The mean BLEU of the directions that are chosen by name; nothing where there is none."""
    found = [{name: each for name, each in run["directions"].items() if chosen(name)} for run in runs]
    return over_seeds(mean(directions) for directions in found if directions)


def differences(runs: list[Run]) -> tuple[str, str]:
    """In how many directions a system is better, and in how many worse, than the baseline; of those tested."""
    directions = [each for run in runs for each in run["directions"].values()]
    tested = [each["against_baseline"] for each in directions if "against_baseline" in each]
    if not tested:
        return "", ""
    found = [each["difference"] for each in tested if each["p"] < SIGNIFICANT]
    return f"{sum(each > 0 for each in found)} of {len(tested)}", f"{sum(each < 0 for each in found)} of {len(tested)}"


def largest_subnet_difference(runs: list[Run]) -> str:
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


def overview(systems: Systems) -> str:
    """A line for each system: scores, and what was tested against the baseline."""
    rows = []
    for system, runs in systems.items():
        rows.append(
            (
                system,
                str(len(runs)),
                over_seeds(mean(run["directions"]) for run in runs),
                mean_of(lambda name: name.startswith("en-"), runs),
                mean_of(lambda name: name.endswith("-en"), runs),
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


def costs(systems: Systems) -> str:
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


def task_gates(systems: Systems) -> str:
    """A line for each stack that routes by task: what its gates have learnt."""
    rows = [
        (
            f"{system}, {stack}",
            *(over_seeds(run["task_gates"][stack][name] for run in runs)
              for name in ("unused", "similarity", "first_weight")),
        )
        for system, runs in systems.items()
        for stack in runs[0].get("task_gates", {})
    ]  # fmt: skip
    if not rows:
        return ""
    head = ("stack", "experts that no task uses", "similarity of two tasks", "weight of the first expert")
    return (
        "\nThe gates of tasks. Of two tasks, 1.00 share all experts with equal weights, 0.00 share none:\n\n"
        + markdown(head, rows)
    )


def shares_of_gain(systems: Systems) -> str:
    """How much of its teacher's gain over the baseline each student has, seed by seed."""
    lines = []
    for student, teacher in TEACHERS.items():
        for run in systems.get(student, []):
            bleu = {each["system"]: mean(each["directions"]) for each in _of_seed(systems, run["seed"])}
            if not {teacher, run["baseline"]} <= bleu.keys():
                continue
            gain = bleu[teacher] - bleu[run["baseline"]]
            own = bleu[student] - bleu[run["baseline"]]
            if gain <= 0:
                share = "and its teacher gains nothing"
            else:
                share = f"{own / gain:.0%} of its teacher's gain" if own > 0 else "nothing of its teacher's gain"
            lines.append(
                f"- {student}, seed {run['seed']}: {own:+.2f} BLEU on {run['baseline']}, {share} ({gain:+.2f}).\n"
            )
    return "\n" + "".join(lines) if lines else ""


def _of_seed(systems: Systems, seed: int) -> list[Run]:
    return [run for runs in systems.values() for run in runs if run["seed"] == seed]


def against_anchor(found: dict[str, Systems]) -> str:
    """How far multilingual systems are from the one that is made for a single direction."""
    anchor, compared = found.get(ANCHOR), {data: found[data] for data in ANCHORED if found.get(data)}
    if not anchor or not compared:
        return ""
    rows = [("bilingual, lower-cased text", *_lowercase(anchor["dense"]))]
    rows += [
        (f"{data}, {each}", *_lowercase(runs)) for data, systems in compared.items() for each, runs in systems.items()
    ]
    return (
        f"\n## {ANCHOR_DIRECTION} beside a bilingual model\n\nBLEU of lower-cased text. With the bilingual model's "
        f"settings others have published {ANCHOR_PUBLISHED} (Wu et al. 2021, *Good for Misconceived Reasons*; Moses' "
        "tokenizer, here sacrebleu's 13a). Tokens are those of a direction in all updates, if every batch was full.\n\n"
        + markdown(("system", "BLEU", "updates", "training tokens of a direction (M)"), rows)
    )


def _lowercase(runs: list[Run]) -> tuple[str, str, str]:
    bleu = over_seeds(run["directions"][ANCHOR_DIRECTION]["bleu_lowercase"] for run in runs)
    updates = over_seeds((run["training"]["updates"] for run in runs), ",.0f")
    return bleu, updates, over_seeds((_tokens(run) / 1e6 for run in runs), ".1f")


def _tokens(run: Run) -> float:
    """Tokens of each direction that a run was trained with, at most."""
    flags = dict(zip(run["flags"], run["flags"][1:]))
    batch = int(flags["--max-tokens"]) * int(flags.get("--update-freq", 1))
    return float(run["training"]["updates"] * batch / len(run["directions"]))


def by_direction(systems: Systems, key: str, metric: str) -> str:
    """One score, ``bleu`` or ``chrf``, of every direction and system."""
    runs_of = {system: [run[key] for run in runs if key in run] for system, runs in systems.items()}
    runs_of = {system: runs for system, runs in runs_of.items() if runs}
    if not runs_of:
        return ""
    directions = list(next(iter(runs_of.values()))[0])
    rows = (
        (system, *(f"{statistics.mean(run[direction][metric] for run in runs):.1f}" for direction in directions))
        for system, runs in runs_of.items()
    )
    return markdown(("system", *directions), rows)
