"""The tables of the comparison's page, as Markdown, made of what record_system.py has written."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from typing import Any

Run = dict[str, Any]
Systems = dict[str, list[Run]]

SIGNIFICANT = 0.05
# What systems are tested against, the first of which is the baseline.
BASELINES = ("dense", "token_token")
# Students, and the system that taught them.
TEACHERS = {"distilled": "token_token", "distilled_words": "token_token"}
# Patterns of the directions of which means are given.
SIDES = {"all": "*", "from": "en-*", "into": "*-en"}
MEGABYTES = 4e-6  # of a parameter, in single precision


def mean(directions: dict[str, Any]) -> float:
    """The mean BLEU of all directions."""
    return statistics.mean(float(each["bleu"]) for each in directions.values())


def rank(runs: list[Run]) -> tuple[float, float]:
    """What systems are sorted by: BLEU, highest first, and where nothing was translated the loss, lowest first."""
    bleu = [mean(run["directions"]) for run in runs if "directions" in run]
    loss = statistics.mean(run["training"]["valid_nll_loss"] for run in runs)
    return (-statistics.mean(bleu) if bleu else 0.0), loss


def over_seeds(values: Iterable[float], form: str = ".2f") -> str:
    """A mean, with its range where there are several values; nothing where there is none."""
    values = list(values)
    if not values:
        return ""
    text = format(statistics.mean(values), form)
    return text if len(values) == 1 else f"{text} [{min(values):{form}}, {max(values):{form}}]"


def of_side(side: str, directions: dict[str, Any]) -> dict[str, Any]:
    """Of what is known by direction: all, that from English, or that into English."""
    return {name: each for name, each in directions.items() if fnmatch(name, SIDES[side])}


def mean_of(side: str, metric: str, runs: list[Run], form: str = ".2f") -> str:
    """The mean score of a side's directions; nothing where there is none."""
    found = [of_side(side, scores(run, "directions", metric)) for run in runs]
    return over_seeds((statistics.mean(each.values()) for each in found if each), form)


def bits_of(side: str, runs: list[Run]) -> str:
    """The mean loss in validation of a side's directions; nothing where it was not recorded."""
    found = [of_side(side, run["training"].get("valid_nll_loss_by_direction", {})) for run in runs]
    return over_seeds((statistics.mean(losses.values()) for losses in found if losses), ".3f")


def differences(runs: list[Run], baseline: str) -> tuple[str, str]:
    """In how many directions a system is better, and in how many worse, than another; of those tested."""
    tested = [each for run in runs for each in run.get("against", {}).get(baseline, {}).values()]
    if not tested:
        return "", ""
    found = [each["difference"] for each in tested if each["p"] < SIGNIFICANT]
    return f"{sum(each > 0 for each in found)} of {len(tested)}", f"{sum(each < 0 for each in found)} of {len(tested)}"


def largest_subnet_difference(runs: list[Run]) -> str:
    """The largest difference in BLEU between a full model and one of its subnets; nothing where none translated."""
    if not any("directions" in run for run in runs):
        return ""
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
    """A line for each system: scores, and what was tested against the baselines; of those that translated."""
    systems = {system: runs for system, runs in systems.items() if "directions" in runs[0]}
    if not systems:
        return ""
    rows = [
        (
            system,
            str(len(runs)),
            *(mean_of(side, "bleu", runs) for side in SIDES),
            mean_of("all", "chrf", runs),
            *(mean_of(side, "length_ratio", runs) for side in ("from", "into")),
            *(cell for baseline in BASELINES for cell in differences(runs, baseline)),
            over_seeds(mean(run["zero_shot"]) for run in runs if "zero_shot" in run),
        )
        for system, runs in systems.items()
    ]
    head = (
        "system", "seeds", "BLEU", "from English", "into English", "chrF", "length, from English", "into English",
        *(f"{how} than {baseline}" for baseline in BASELINES for how in ("better", "worse")), "BLEU, untrained pairs",
    )  # fmt: skip
    return markdown(head, rows) + "\n"


def costs(systems: Systems) -> str:
    """A line for each system: learning rate, parameters, speed, loss, experts in use, and what its subnets lose."""
    rows = []
    for system, runs in systems.items():
        size = runs[0]["parameters"]
        gates = [run["training"]["gates"] for run in runs]
        used = [[each[stack]["experts_in_use"] for each in gates] for stack in ("encoder", "decoder")]
        rows.append(
            (
                system,
                flag(runs[0], "--lr"),
                *(f"{size[name] / 1e6:.2f}" for name in ("total", "active")),
                f"{size['served'] * MEGABYTES:.2f}",
                over_seeds((each for run in runs if (each := run["training"]["words_per_processor_second"])), ".0f"),
                over_seeds((run["training"]["valid_nll_loss"] for run in runs), ".3f"),
                *(bits_of(side, runs) for side in ("from", "into")),
                *(over_seeds(each, ".2f") if any(each) else "" for each in used),
                largest_subnet_difference(runs),
            )
        )
    head = (
        "system", "learning rate", "parameters (M)", "a token uses (M)", "stored for one direction (MB)",
        "training, words per second of one core", "validation loss (bits)", "from English", "into English",
        "encoder experts in use", "decoder experts in use", "BLEU of subnets, largest difference",
    )  # fmt: skip
    return markdown(head, rows)


def flag(run: Run, name: str) -> str:
    """The value of a flag that a run was trained with."""
    return str(run["flags"][run["flags"].index(name) + 1])


def learning_rates(systems: Systems) -> str:
    """A line for each system whose learning rate was chosen: the losses of the trials, the chosen one in bold."""
    found = {system: runs[0].get("learning_rate", {}) for system, runs in systems.items()}
    found = {system: each for system, each in found.items() if len(each.get("valid_nll_loss", ())) > 1}
    if not found:
        return ""
    rates = sorted({rate for each in found.values() for rate in each["valid_nll_loss"]}, key=float)
    rows = []
    for system, each in found.items():
        losses = {rate: "diverged" if loss is None else f"{loss:.3f}" for rate, loss in each["valid_nll_loss"].items()}
        losses[each["chosen"]] = f"**{losses[each['chosen']]}**"
        rows.append((system, *(losses.get(rate, "") for rate in rates)))
    head = "\nValidation loss (bits) of short trainings with other learning rates, the chosen one in bold:\n\n"
    return head + markdown(("system", *rates), rows)


def curves(systems: Systems) -> str:
    """A line for each system but the baseline: by how much its loss differs from the baseline's during training."""
    baselines = {run["seed"]: run for run in systems.get(BASELINES[0], []) if "curve" in run["training"]}
    rows, millions = [], []
    for system, runs in systems.items():
        pairs = [
            (run, baselines[run["seed"]]) for run in runs if run["seed"] in baselines and "curve" in run["training"]
        ]
        if not pairs or system in TEACHERS or system == BASELINES[0]:
            continue
        curves = [zip(run["training"]["curve"], other["training"]["curve"]) for run, other in pairs]
        gains = [[ours["nll_loss"] - theirs["nll_loss"] for ours, theirs in points][1::2] for points in curves]
        millions = [f"{each['tokens'] / 1e6:.1f}" for each in pairs[0][1]["training"]["curve"][1::2]]
        rows.append((system, *(f"{statistics.mean(each):+.3f}" for each in zip(*gains))))
    if not rows:
        return ""
    head = (
        f"\nLoss of the training text (bits), less that of {BASELINES[0]} of the same seed on the same batches, by "
        "millions of target tokens seen:\n\n"
    )
    return head + markdown(("system", *millions), rows)


def task_gates(systems: Systems) -> str:
    """A line for each stack that routes by task: what its gates have learnt."""
    names = ("unused", "similarity", "related", "unrelated", "first_weight")
    rows = [
        (
            f"{system}, {stack}",
            *(over_seeds(run["task_gates"][stack][name] for run in runs if name in run["task_gates"][stack])
              for name in names),
        )
        for system, runs in systems.items()
        for stack in runs[0]["task_gates"]
    ]  # fmt: skip
    if not rows:
        return ""
    head = (
        "stack", "experts that no task uses", "similarity of two tasks", "of related languages",
        "of unrelated languages", "weight of the first expert",
    )  # fmt: skip
    return (
        "\nThe gates of tasks. Of two tasks, 1.00 share all experts with equal weights, 0.00 share none:\n\n"
        + markdown(head, rows)
    )


def shares_of_gain(systems: Systems) -> str:
    """How much of its teacher's gain over the baseline each student has, seed by seed."""
    lines, baseline = [], BASELINES[0]
    for student, teacher in TEACHERS.items():
        for run in systems.get(student, []):
            others = [each for each in _of_seed(systems, run["seed"]) if "directions" in each]
            bleu = {each["system"]: mean(each["directions"]) for each in others}
            if not {student, teacher, baseline} <= bleu.keys():
                continue
            gain = bleu[teacher] - bleu[baseline]
            own = bleu[student] - bleu[baseline]
            if gain <= 0:
                share = "and its teacher gains nothing"
            else:
                share = f"{own / gain:.0%} of its teacher's gain" if own > 0 else "nothing of its teacher's gain"
            lines.append(f"- {student}, seed {run['seed']}: {own:+.2f} BLEU on {baseline}, {share} ({gain:+.2f}).\n")
    return "".join([*lines, "\n"]) if lines else ""


def _of_seed(systems: Systems, seed: int) -> list[Run]:
    return [run for runs in systems.values() for run in runs if run["seed"] == seed]


def scores(run: Run, key: str, metric: str) -> dict[str, float]:
    """One score of every direction; empty where it was not recorded."""
    return {name: each[metric] for name, each in run.get(key, {}).items() if metric in each}


def by_direction(systems: Systems, of_run: Callable[[Run], dict[str, float]], form: str = ".1f") -> str:
    """One figure of every direction and system, of those that have it."""
    found = {system: [values for run in runs if (values := of_run(run))] for system, runs in systems.items()}
    found = {system: runs for system, runs in found.items() if runs}
    if not found:
        return ""
    directions = list(next(iter(found.values()))[0])
    rows = (
        (system, *(format(statistics.mean(run[direction] for run in runs), form) for direction in directions))
        for system, runs in found.items()
    )
    return markdown(("system", *directions), rows)
