"""The timing helper, with a clock that the systems themselves move."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from taskmoe_plugin.bench.timing import Summary, make_clock, paired_ratios, time_in_turns


class FakeTime:
    """A clock, and systems that take a given time and note that they were called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def system(self, name: str, *seconds: float) -> Callable[[], None]:
        """A system whose calls take the given times, the last of them from then on."""
        left = list(seconds)

        def call() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_every_repetition_runs_every_system_and_starts_with_another_one() -> None:
    fake = FakeTime()
    time_in_turns({name: fake.system(name, 1.0) for name in "abc"}, repetitions=3, warmup=0, clock=fake.clock)
    assert "".join(fake.calls) == "abc" + "abc" + "bca" + "cab"


def test_seconds_are_those_of_one_call_and_leave_the_warm_up_out() -> None:
    fake = FakeTime()
    systems = {"slow start": fake.system("slow start", 9.0, 8.0, 7.0, 2.0), "steady": fake.system("steady", 0.25)}
    seconds = time_in_turns(systems, repetitions=3, warmup=2, clock=fake.clock)
    assert seconds == {"slow start": [2.0] * 3, "steady": [0.25] * 3}


def test_fast_systems_are_called_until_a_value_covers_the_asked_time() -> None:
    fake = FakeTime()
    systems = {"fast": fake.system("fast", 0.25), "slow": fake.system("slow", 4.0)}
    seconds = time_in_turns(systems, repetitions=1, warmup=0, min_seconds=1.0, clock=fake.clock)
    assert fake.calls.count("fast") == 1 + 4
    assert fake.calls.count("slow") == 1 + 1
    assert seconds == {"fast": [0.25], "slow": [4.0]}


def test_ratios_pair_the_values_of_one_repetition() -> None:
    # The machine slows down threefold on the way; within a repetition the second system is twice as fast.
    assert paired_ratios([1.0, 2.0, 3.0], [0.5, 1.0, 1.5]) == Summary(2.0, 2.0, 2.0)


def test_a_summary_has_the_median_and_the_quartiles() -> None:
    assert Summary.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Summary(3.0, 2.0, 4.0)
    assert Summary.of([7.0]) == Summary(7.0, 7.0, 7.0)
    assert Summary.of([1.0, 2.0]).median == pytest.approx(1.5)


def test_the_clock_of_time_computed_stands_still_while_a_process_sleeps() -> None:
    passed, computed = make_clock(cpu_time=False), make_clock(cpu_time=True)
    start = passed(), computed()
    time.sleep(0.2)
    assert passed() - start[0] >= 0.2
    assert computed() - start[1] < 0.1
