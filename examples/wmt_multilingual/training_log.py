"""What fairseq logged of a training."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from text import TextError

LOGGED = re.compile(r"\| (train_inner|valid) \| (\{.*\})$")
BY_DIRECTION = re.compile(r"valid_([^_]+-[^_]+)_nll_loss")
POINTS = 20  # of the curve of losses in training


def logged(log: Path, kind: str) -> Iterator[dict[str, Any]]:
    """What fairseq logged of one kind, from lines such as ``... | train_inner | {"epoch": 1, ...}``.

    Of what an interruption made it log twice, the last is true.
    """
    updates = {"train_inner": "num_updates", "valid": "valid_num_updates"}[kind]
    found: dict[int, dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        match = LOGGED.search(line)
        if match and match[1] == kind:
            event = json.loads(match[2])
            found[int(event[updates])] = event
    yield from (found[number] for number in sorted(found))


def tokens_seen(intervals: list[dict[str, Any]]) -> list[float]:
    """Target tokens of the training up to the end of each interval that was logged."""
    ends, seen = [0, *(int(each["num_updates"]) for each in intervals)], [0.0]
    for before, after, each in zip(ends, ends[1:], intervals):
        seen.append(seen[-1] + (after - before) * float(each["wpb"]))
    return seen[1:]


def words_per_second(seconds: Path, words: float) -> float | None:
    """Words of training for each second of the processor; None after an interruption, for its seconds are lost."""
    lines = seconds.read_text().splitlines()
    return words / float(lines[1]) if len(lines) == 2 else None


def curve(intervals: list[dict[str, Any]], tokens: list[float]) -> list[dict[str, float]]:
    """The mean loss, in bits, of the training text between points at equal distances, at most ``POINTS`` of them."""
    size = max(-(-len(intervals) // POINTS), 1)
    points = []
    for start in range(0, len(intervals) - size + 1, size):
        group = intervals[start : start + size]
        loss = sum(float(each["nll_loss"]) for each in group) / size
        points.append({"tokens": tokens[start + size - 1], "nll_loss": loss})
    return points


def training(work_dir: Path, updates: int) -> dict[str, Any]:
    """What the log says of a training: its speed, its course, and the losses of the checkpoint with so many updates.

    All losses are in bits a token, without label smoothing. Raises TextError where the log lacks that checkpoint.
    """
    log = work_dir / "train.out"
    intervals = list(logged(log, "train_inner"))
    validations = {int(each["valid_num_updates"]): each for each in logged(log, "valid")}
    if not intervals or updates not in validations:
        raise TextError(f"{log}: no training in it; delete the directory and run the system again")
    tokens = tokens_seen(intervals)
    last, final = intervals[-1], validations[updates]
    names = ("experts_in_use", "gate_entropy", "balance_loss")
    directions = {match[1]: float(final[key]) for key in final if (match := BY_DIRECTION.fullmatch(key))}
    return {
        "updates": updates,
        "tokens": tokens[-1],
        "words_per_processor_second": words_per_second(work_dir / "train.seconds", tokens[-1]),
        "valid_nll_loss": float(final["valid_nll_loss"]),
        "valid_nll_loss_by_direction": directions,
        "valid_curve": [{"updates": number, "nll_loss": float(each["valid_nll_loss"])} for number, each in
                        validations.items()],
        "curve": curve(intervals, tokens),
        "gates": {stack: {name: float(last[f"{stack}_{name}"]) for name in names} for stack in ("encoder", "decoder")},
    }  # fmt: skip
