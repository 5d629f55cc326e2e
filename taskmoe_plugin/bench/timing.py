"""Timing several systems in turns, so that what else the machine does falls equally on all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Clock = Callable[[], float]
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Summarise at least one value; quartiles are interpolated between the values."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def make_clock(cpu_time: bool, device: torch.device | None = None) -> Clock:
    """A clock in seconds.

    Args:
        cpu_time: count the time that this process computes rather than the time that passes: on a machine that others
            use as well, it leaves out what they take. With several threads it adds theirs up.
        device: wait for this device to finish what it was given before the time is told.
    """
    if device is None or device.type != "cuda":
        return time.process_time if cpu_time else time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def time_in_turns(
    systems: Mapping[Name, Callable[[], object]],
    repetitions: int,
    warmup: int = 1,
    min_seconds: float = 0.0,
    clock: Clock = time.perf_counter,
) -> dict[Name, list[float]]:
    """Seconds per call of each system, one value per repetition.

    Every repetition runs every system, starting with another one each time.

    Args:
        systems: what to call, by name.
        repetitions: how many values to take of each.
        warmup: calls of each system that are not counted, besides one that finds out how long a call takes.
        min_seconds: a system is called several times in a row until a value covers about this long.
        clock: tells the time in seconds.
    """
    calls = {}
    for name, system in systems.items():
        for _ in range(warmup):
            system()
        start = clock()
        system()
        calls[name] = max(1, math.ceil(min_seconds / max(clock() - start, 1e-9)))
    seconds: dict[Name, list[float]] = {name: [] for name in systems}
    names = list(systems)
    for repetition in range(repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            for _ in range(calls[name]):
                systems[name]()
            seconds[name].append((clock() - start) / calls[name])
    return seconds


def paired_ratios(reference: Sequence[float], seconds: Sequence[float]) -> Summary:
    """How many times faster than the reference: its seconds over these, each pair from one repetition."""
    return Summary.of([theirs / ours for theirs, ours in zip(reference, seconds)])
